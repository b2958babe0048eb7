"""`--dry-run`: what a config amounts to, and where every rank stands."""

from __future__ import annotations

from collections.abc import Sequence

from megarl.config.plan import RolePlan, RunPlan
from megarl.config.schema import Config


def describe_plan(config: Config, plan: RunPlan, ranks_per_node: int) -> str:
    """Sizes of the run, then one line per rank."""
    return "\n".join([*_summary(config, plan), "", *_table(plan, ranks_per_node), ""])


def _summary(config: Config, plan: RunPlan) -> list[str]:
    data, algorithm = config.data, config.algorithm
    samples = data.rollout_batch_size * data.n_samples_per_prompt
    updates = samples // algorithm.global_batch_size * algorithm.ppo_epochs
    tp = plan.rollout_tensor_parallel_size
    lines = [f"{plan.world_size} ranks in {len(plan.pools)} pool(s)"]
    for name, role in plan.roles.items():
        where = _ranges(role.ranks)
        lines.append(f"  {name:<10}{role.layout.describe():<14} ranks {where}  {role.path}")
    replicas = len(plan.rollout_ranks) // tp
    where = _ranges(plan.rollout_ranks)
    lines.append(
        f"  {'rollout':<10}{f'{replicas} x t{tp}':<14} ranks {where}  {config.rollout.engine}"
    )
    lines.append(
        f"a step: {data.rollout_batch_size} prompts x {data.n_samples_per_prompt} samples = "
        f"{samples} samples, {updates} optimizer step(s) of {algorithm.global_batch_size}"
    )
    return lines


def _table(plan: RunPlan, ranks_per_node: int) -> list[str]:
    """One row per rank, in columns."""
    heads = [f"{name} (tp,pp,dp)" for name in plan.roles]
    rows = [["rank", "node local", *heads, "rollout (replica,tp)"]]
    for rank in range(plan.world_size):
        node, local = divmod(rank, ranks_per_node)
        cells = [str(rank), f"{node} {local}"]
        cells += [_place(role, rank) for role in plan.roles.values()]
        rows.append([*cells, _replica(plan, rank)])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def _place(role: RolePlan, rank: int) -> str:
    if rank not in role.ranks:
        return "-"
    at = role.layout.coordinates(role.ranks.index(rank))
    context = f" cp {at.cp}" if role.layout.cp > 1 else ""
    return f"{at.tp},{at.pp},{at.dp}{context}"


def _replica(plan: RunPlan, rank: int) -> str:
    if rank not in plan.rollout_ranks:
        return "-"
    replica, tp = divmod(plan.rollout_ranks.index(rank), plan.rollout_tensor_parallel_size)
    return f"{replica},{tp}"


def _ranges(ranks: Sequence[int]) -> str:
    """0-3,6 for 0, 1, 2, 3, 6."""
    parts: list[list[int]] = []
    for rank in ranks:
        if parts and parts[-1][-1] == rank - 1:
            parts[-1] = [parts[-1][0], rank]
        else:
            parts.append([rank])
    return ",".join("-".join(map(str, part)) for part in parts)

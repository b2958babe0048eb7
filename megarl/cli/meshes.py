"""`--dry-run`: what a config amounts to, and where every rank stands."""

from __future__ import annotations

from collections.abc import Sequence

from megarl.config.schema import Config
from megarl.mesh.run_plan import RolePlan, RunPlan
from megarl.reshard.assignment import assign_shards


def describe_plan(
    config: Config, plan: RunPlan, ranks_per_node: int, command: str, costs: Sequence[str] = ()
) -> str:
    """Sizes of what `megarl <command>` would run, what it costs, then one line per rank."""
    generates = command in ("train", "eval")
    plan = assign_shards(plan, lambda rank: rank // ranks_per_node) if generates else plan
    head = _head(plan)
    head += [_rollout(config, plan)] if generates else []
    generates = generates and bool(plan.rollout_ranks)
    head += [] if command == "eval" else [_step(config, command)]
    head += ["", *costs] if costs else []
    return "\n".join([*head, "", *_table(plan, ranks_per_node, generates), ""])


def _head(plan: RunPlan) -> list[str]:
    lines = [f"{plan.world_size} ranks in {len(plan.pools)} pool(s)"]
    for name, role in plan.roles.items():
        where = ranges(role.ranks)
        lines.append(f"  {name:<10}{role.layout.describe():<14} ranks {where}  {role.path}")
    return lines


def _rollout(config: Config, plan: RunPlan) -> str:
    if not plan.rollout_ranks:
        launched = config.rollout.launch.replicas
        what = f"{launched or len(config.rollout.servers) or 'some'} x {plan.replica.describe()}"
        return f"  {'rollout':<10}{what:<14} vLLM servers outside of the ranks"
    replicas = len(plan.rollout_ranks) // plan.replica.size
    what, where = f"{replicas} x {plan.replica.describe()}", ranges(plan.rollout_ranks)
    return f"  {'rollout':<10}{what:<14} ranks {where}  {config.rollout.engine}"


def _step(config: Config, command: str) -> str:
    data, algorithm = config.data, config.algorithm
    if command != "train":
        return f"a step: {algorithm.global_batch_size} examples, one optimizer step"
    samples = data.rollout_batch_size * data.n_samples_per_prompt
    updates = samples // algorithm.global_batch_size * algorithm.ppo_epochs
    return (
        f"a step: {data.rollout_batch_size} prompts x {data.n_samples_per_prompt} samples = "
        f"{samples} samples, {updates} optimizer step(s) of {algorithm.global_batch_size}"
    )


def _table(plan: RunPlan, ranks_per_node: int, generates: bool) -> list[str]:
    """One row per rank, in columns."""
    heads = [f"{name} (tp,pp,dp)" for name in plan.roles]
    heads += ["rollout (replica,tp)"] if generates else []
    rows = [["rank", "node local", *heads]]
    for rank in range(plan.world_size):
        node, local = divmod(rank, ranks_per_node)
        cells = [str(rank), f"{node} {local}"]
        cells += [_place(role, rank) for role in plan.roles.values()]
        rows.append([*cells, _replica(plan, rank)] if generates else cells)
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
    index, layout = plan.rollout_ranks.index(rank), plan.replica
    at = layout.slice_of(index)
    stage = f" pp {at.pp_rank}" if layout.pp > 1 else ""
    return f"{layout.replica_of(index)},{at.tp_rank}{stage}"


def ranges(ranks: Sequence[int]) -> str:
    """0-3,6 for 0, 1, 2, 3, 6."""
    parts: list[list[int]] = []
    for rank in ranks:
        if parts and parts[-1][-1] == rank - 1:
            parts[-1] = [parts[-1][0], rank]
        else:
            parts.append([rank])
    return ",".join("-".join(map(str, part)) for part in parts)

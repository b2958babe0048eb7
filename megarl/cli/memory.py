"""`--dry-run`: what a run will take of every rank's memory and of the network, by formula."""

from __future__ import annotations

from dataclasses import dataclass, replace

from megarl.config.schema import Config
from megarl.layout import vllm_placement
from megarl.layout.memory import RankMemory, TrainedWith, rank_memory
from megarl.mesh.layout import megatron_slice
from megarl.mesh.run_plan import RolePlan, RunPlan
from megarl.reshard.assignment import assign_shards
from megarl.reshard.placements import actor_placements, rollout_placements

GB = 1e9
_BYTES = {"float32": 4, "bfloat16": 2}
TRAINED = ("actor", "critic")


@dataclass(frozen=True, slots=True)
class RoleMemory:
    """The rank of a role that has most of it."""

    most: RankMemory
    offloads: bool
    """Whether gradients and optimizer leave the GPU while rollouts are made."""


def role_memory(config: Config, name: str, role: RolePlan, command: str) -> RoleMemory:
    """Over the pipeline's stages, the one that needs most; other ranks of a stage are alike."""
    trained = name in TRAINED and command != "eval"
    section = getattr(config, name)
    layout, experts = role.layout, role.layout.expert_layout()
    optimizer = section.optimizer if trained else None
    dealt = optimizer is not None and optimizer.use_distributed_optimizer
    how = TrainedWith(
        trained=trained,
        dtype_bytes=_BYTES[section.model.dtype],
        data_ranks=layout.dp * layout.cp if dealt else 1,
        expert_data_ranks=experts.dp if dealt else 1,
        sequence_parallel=layout.sequence_parallel,
        context_ranks=layout.cp,
        recompute=section.model.recompute_granularity,
        tokens=micro_batch_tokens(config, command),
        experts_per_token=int(role.hf.get("num_experts_per_tok") or 0),
    )
    first = megatron_slice(layout, 0)
    stages = [replace(first, pp_rank=stage) for stage in range(layout.pp)]
    most = max(
        (rank_memory(role.shape, at, how) for at in stages),
        key=lambda one: one.resident + one.activations,
    )
    away = optimizer is not None and optimizer.optimizer_offload and optimizer.grad_offload
    return RoleMemory(most, away)


def micro_batch_tokens(config: Config, command: str) -> int:
    """Tokens of a micro-batch, padding included, at most."""
    data, algorithm = config.data, config.algorithm
    if command == "pretrain":
        return algorithm.micro_batch_size * data.indexed.seq_length
    if algorithm.use_dynamic_batch_size:
        return algorithm.max_tokens_per_gpu
    return algorithm.micro_batch_size * (data.max_prompt_length + data.max_response_length)


def rollout_bytes(config: Config, plan: RunPlan) -> int:
    """vLLM's weights on the rank of a replica that has most of them."""
    dtype = config.rollout.dtype or config.actor.model.dtype
    slices = [plan.replica.slice_of(index) for index in range(plan.replica.size)]
    held = [sum(piece.box.numel for piece in vllm_placement(plan.actor.shape, at)) for at in slices]
    return max(held) * _BYTES[dtype]


def describe_memory(config: Config, plan: RunPlan, command: str) -> list[str]:
    """A line per role, then the two moments that decide whether a rank's memory is enough."""
    found = {name: role_memory(config, name, role, command) for name, role in plan.roles.items()}
    heads = ["GB of a rank, at most", "weights", "gradients", "optimizer", "activations"]
    rows = [heads]
    for name, role in found.items():
        most = role.most
        sizes = (most.weights, most.gradients, most.optimizer, most.activations)
        rows.append([f"  {name}", *(f"{size / GB:.2f}" for size in sizes)])
    rollout = rollout_bytes(config, plan) if command in ("train", "eval") else 0
    if rollout:
        rows.append(["  rollout", f"{rollout / GB:.2f}", "", "", "and its cache"])
    lines = [
        "  ".join(cell.rjust(11) if column else cell.ljust(22) for column, cell in enumerate(row))
        for row in rows
    ]
    return [*[line.rstrip() for line in lines], *_moments(config, plan, found, rollout)]


def describe_traffic(config: Config, plan: RunPlan, ranks_per_node: int) -> list[str]:
    """What one weight sync brings to a rank; `megarl plan reshard` says more."""
    import torch

    from megarl import native
    from megarl.layout.cost import LinkModel, cost_of

    def node_of(rank: int) -> int:
        return rank // ranks_per_node

    run = assign_shards(plan, node_of)
    sources = actor_placements(run.actor.shape, run.actor.layout, run.actor.ranks)
    needed = rollout_placements(run.actor.shape, run.replica, run.rollout_ranks)
    totals = native.plan_totals(sources, needed, node_of=node_of)
    dtype = config.rollout.dtype or config.actor.model.dtype
    cost = cost_of(totals.values(), getattr(torch, dtype).itemsize, LinkModel())
    return [
        f"a weight sync: {cost.received_max / GB:.2f} GB into a rank at most, from its node "
        f"{cost.near_max / GB:.2f}, from others {cost.far_max / GB:.2f} ({ranks_per_node} ranks a "
        "node); more by `megarl plan reshard`"
    ]


def _moments(
    config: Config, plan: RunPlan, found: dict[str, RoleMemory], rollout: int
) -> list[str]:
    """Each pool while it updates, and while it makes rollouts."""
    lines = []
    for pool in plan.pools:
        here = {name: found[name] for name, role in plan.roles.items() if role.ranks == pool}
        weights = sum(role.most.weights for role in here.values())
        states = {n: role.most.gradients + role.most.optimizer for n, role in here.items()}
        generates = rollout and plan.rollout_ranks == pool
        asleep = bool(generates) and config.rollout.enable_sleep_mode
        update = weights + sum(states.values()) + (0 if asleep or not generates else rollout)
        update += max((role.most.activations for role in here.values()), default=0)
        text = f"  ranks {pool[0]}-{pool[-1]}: {update / GB:.1f} GB in an update"
        if generates:
            stay = sum(size for name, size in states.items() if not here[name].offloads)
            text += f", {(weights + stay + rollout) / GB:.1f} GB and vLLM's cache in a rollout"
        lines.append(text)
    return lines

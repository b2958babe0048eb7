"""`--dry-run`: what a run will take of every rank's memory and of the network, by formula."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from megarl.config.schema import Config
from megarl.layout import vllm_placement
from megarl.layout.memory import BUCKET_ELEMENTS, RankMemory, TrainedWith, rank_memory
from megarl.mesh.layout import megatron_slice
from megarl.mesh.run_plan import RolePlan, RunPlan
from megarl.reshard.assignment import assign_shards
from megarl.reshard.placements import actor_placements, rollout_placements

GB = 1e9
_BYTES = {"float32": 4, "bfloat16": 2}
TRAINED = ("actor", "critic")


@dataclass(frozen=True, slots=True)
class RoleMemory:
    """The most that a rank of a role has of each kind."""

    most: RankMemory
    away: int = 0
    """Bytes that leave the GPU but for an update of this role."""
    away_but_saved: int = 0
    """Those of them that a checkpoint brings back: the optimizer's."""

    @property
    def stay(self) -> int:
        """Bytes that are there at all times."""
        return self.most.resident - self.away


@dataclass(frozen=True, slots=True)
class Moment:
    """One of the moments that decide whether a rank's memory is enough."""

    name: str
    size: int
    """Bytes, without vLLM's where it is there."""
    beside_vllm: bool


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
        bucket_elements=(
            max(BUCKET_ELEMENTS, 1_000_000 * layout.dp)
            if optimizer is not None and optimizer.overlap_grad_reduce
            else None
        ),
        gathers=dealt,
    )
    first = megatron_slice(layout, 0)
    stages = [replace(first, pp_rank=stage) for stage in range(layout.pp)]
    found = [rank_memory(role.shape, at, how) for at in stages]
    most = max(found, key=lambda one: one.resident + one.activations)
    most = replace(most, gathered=max(one.gathered for one in found))
    gradients = most.gradients if optimizer is not None and optimizer.grad_offload else 0
    states = most.optimizer if optimizer is not None and optimizer.optimizer_offload else 0
    return RoleMemory(most, gradients + states, states)


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
    """A line per role, then for each pool the moments that decide whether its GPUs are enough."""
    found = {name: role_memory(config, name, role, command) for name, role in plan.roles.items()}
    kinds = ("weights", "gradients", "optimizer", "activations", "gathered")
    rows = [["GB of a rank, at most", *kinds]]
    for name, role in found.items():
        sizes = (getattr(role.most, kind) for kind in kinds)
        rows.append([f"  {name}", *(f"{size / GB:.2f}" for size in sizes)])
    generates = command in ("train", "eval") and bool(plan.rollout_ranks)
    rollout = rollout_bytes(config, plan) if generates else 0
    if rollout:
        rows.append(["  rollout", f"{rollout / GB:.2f}", "", "", "and its cache"])
    lines = [
        "  ".join(cell.rjust(11) if column else cell.ljust(22) for column, cell in enumerate(row))
        for row in rows
    ]
    lines = [line.rstrip() for line in lines]
    for pool in plan.pools:
        here = {name: found[name] for name, role in plan.roles.items() if role.ranks == pool}
        generates = rollout > 0 and plan.rollout_ranks == pool
        found_here = moments(config, here, rollout if generates else 0, command)
        lines += _describe(config, pool, found_here, rollout if generates else 0)
    return lines


def describe_traffic(config: Config, plan: RunPlan, ranks_per_node: int) -> list[str]:
    """What one weight sync brings to a rank; `megarl plan reshard` says more."""
    import torch

    from megarl import native
    from megarl.layout.cost import LinkModel, cost_of

    def node_of(rank: int) -> int:
        return rank // ranks_per_node

    if not plan.rollout_ranks:
        return ["a weight sync goes to servers, whose place is not known here"]
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


def moments(
    config: Config, roles: Mapping[str, RoleMemory], rollout: int, command: str
) -> list[Moment]:
    """Those of one pool; roles: what is on it; rollout: bytes of vLLM's weights there, or 0.

    Critic and actor are updated and saved one after the other. An evaluation's answers are scored
    beside the engine.
    """
    engine = config.rollout
    on_gpu = rollout > 0 and engine.engine == "vllm"
    fixed = rollout if rollout and not on_gpu else 0
    stay = sum(role.stay for role in roles.values()) + fixed
    update = max((role.away + role.most.activations for role in roles.values()), default=0)
    found = []
    if command != "eval" and roles:
        found.append(Moment("an update", stay + update, on_gpu and not engine.enable_sleep_mode))
    if rollout:
        scores = roles["reward"].most.activations if "reward" in roles else 0
        found.append(Moment("a rollout", stay + scores, on_gpu))
    trained = [role for role in roles.values() if role.most.gradients]
    if trained and command != "eval":
        saved = max(role.away_but_saved + role.most.gathered for role in trained)
        found.append(Moment("a checkpoint", stay + saved, on_gpu))
    return found


def gpu_bytes(found: Sequence[Moment], share: float, rollout: int) -> float:
    """The least memory of a GPU that has room for all moments, and for vLLM's weights."""
    least = rollout / share
    for moment in found:
        rest = 1 - share if moment.beside_vllm else 1.0
        least = max(least, moment.size / rest if rest > 0 else math.inf)
    return least


def _describe(
    config: Config, pool: Sequence[int], found: Sequence[Moment], rollout: int
) -> list[str]:
    sizes = ", ".join(f"{one.size / GB:.1f} GB in {one.name}" for one in found)
    lines = [f"  ranks {pool[0]}-{pool[-1]}: {sizes}"]
    share = config.rollout.gpu_memory_utilization
    beside = [one.name for one in found if one.beside_vllm]
    vllm = f"vLLM's {share:g} of the GPU comes to {' and '.join(beside)}: " if beside else ""
    least = gpu_bytes(found, share, rollout if beside else 0)
    return [*lines, f"    {vllm}{least / GB:.1f} GB of a GPU at least"]

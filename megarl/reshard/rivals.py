"""What other ways of moving the weights would move, counted from the layouts: for comparison."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from megarl.layout import ModelShape, Placement, megatron_placement
from megarl.layout.cost import Totals
from megarl.layout.rules import expand, rules_for
from megarl.mesh.layout import MeshLayout, megatron_slice


def gather_totals(
    shape: ModelShape,
    layout: MeshLayout,
    actor_ranks: Sequence[int],
    rollout_ranks: Sequence[int],
    node_of: Callable[[int], int],
) -> dict[int, Totals]:
    """Gather to full tensors, then load: what each rank receives.

    A stage's tensors are gathered over its tensor ranks (experts over theirs), then broadcast whole
    from each rank to its peers in the other stages. Ranks outside the actor's pool are sent all,
    by all of its ranks alike.
    """
    experts = layout.expert_layout()
    stages = [_sizes(_whole_stage(shape, layout, stage)) for stage in range(layout.pp)]
    total = sum(dense + expert for dense, expert in stages)
    found = {rank: _received(total, rank, actor_ranks, node_of) for rank in rollout_ranks}
    held: dict[int, tuple[int, int]] = {}
    for index, rank in enumerate(actor_ranks):
        at, place = layout.coordinates(index), experts.coordinates(index)
        placement = megatron_placement(shape, megatron_slice(layout, index))
        if id(placement) not in held:  # equal ranks share one placement
            held[id(placement)] = _sizes(placement)
        mine = held[id(placement)]
        groups = (
            [layout.rank(tp=t, cp=at.cp, dp=at.dp, pp=at.pp) for t in range(layout.tp)],
            [
                experts.rank(tp=t, cp=e, dp=place.dp, pp=at.pp)
                for e in range(layout.ep)
                for t in range(layout.etp)
            ],
        )
        near = far = 0
        for size, own, group in zip(stages[at.pp], mine, groups, strict=True):
            peers = [actor_ranks[other] for other in group if other != index]
            close = sum(node_of(peer) == node_of(rank) for peer in peers)
            if peers:
                near += (size - own) * close // len(peers)
                far += (size - own) - (size - own) * close // len(peers)
        for stage, sizes in enumerate(stages):
            if stage != at.pp:
                peer = actor_ranks[layout.rank(tp=at.tp, cp=at.cp, dp=at.dp, pp=stage)]
                here = node_of(peer) == node_of(rank)
                near, far = near + sum(sizes) * here, far + sum(sizes) * (not here)
        found[rank] = Totals(0, near, far, 0, 0)
    return found


def m2n_totals(
    shape: ModelShape,
    tensor_parallel_size: int,
    actor_ranks: Sequence[int],
    rollout_ranks: Sequence[int],
    node_of: Callable[[int], int],
) -> dict[int, Totals]:
    """vLLM's own many-to-many transfer: what each worker receives, and as much sent."""
    size = m2n_elements(shape, tensor_parallel_size)
    return {
        rank: Totals(0, near, far, near, far)
        for rank in rollout_ranks
        for _, near, far, _, _ in [_received(size, rank, actor_ranks, node_of)]
    }


def _received(
    size: int, rank: int, actor_ranks: Sequence[int], node_of: Callable[[int], int]
) -> Totals:
    """From all ranks of the actor alike, some of them on the rank's own node."""
    close = sum(node_of(peer) == node_of(rank) for peer in actor_ranks)
    near = size * close // len(actor_ranks)
    return Totals(0, near, size - near, 0, 0)


def m2n_elements(shape: ModelShape, tensor_parallel_size: int) -> int:
    """Elements that each worker of vLLM's own many-to-many transfer receives.

    It sends shards of row-parallel dense weights, and everything else to every worker in full.
    """
    everything = range(shape.num_layers), range(shape.num_experts)
    total = 0
    for rule, _, _ in expand(rules_for(shape), *everything, first=True, last=True):
        sharded = rule.kind == "row" and not rule.experts
        for dims in rule.dims:
            numel = 1
            for dim in dims:
                numel *= shape.dim(dim)
            total += numel // tensor_parallel_size if sharded else numel
    return total


def _whole_stage(shape: ModelShape, layout: MeshLayout, stage: int) -> Placement:
    slice_ = megatron_slice(layout, layout.rank(pp=stage))
    whole = replace(slice_, tp_rank=0, tp_size=1, ep_rank=0, ep_size=1, etp_rank=0, etp_size=1)
    return megatron_placement(shape, whole)


def _sizes(placement: Placement) -> tuple[int, int]:
    """Elements of dense parameters, and of experts."""
    expert = sum(piece.box.numel for piece in placement if ".experts." in piece.tensor)
    return sum(piece.box.numel for piece in placement) - expert, expert

"""Which rank takes which vLLM shard: strides under which most weights are where they are needed.

What HybridFlow (Sheng et al., 2024, section 5.3) does with fixed interval groups is found here by
counting, for any mesh: an actor with tensor parallelism 4 under replicas of 2 gives ranks {0, 2}
and {1, 3}, so that every rank's quarter lies inside its half.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from megarl.layout import Piece, Placement, ReplicaLayout
from megarl.mesh.run_plan import RunPlan
from megarl.reshard.placements import actor_placements, rollout_placements


def assign_shards(plan: RunPlan, node_of: Callable[[int], int]) -> RunPlan:
    """The plan, with the strides of its replicas chosen.

    Replicas span as few nodes as they can; among such choices most elements are in place; among
    equals tensor ranks are neighbours. node_of: universe rank -> node.
    """
    ranks = plan.rollout_ranks
    if not ranks:  # servers' own
        return plan
    sources = actor_placements(plan.actor.shape, plan.actor.layout, plan.actor.ranks)
    choices = _in_fewest_nodes(plan.replica, ranks, node_of)
    if len(choices) == 1 or not set(ranks) & sources.keys():
        return replace(plan, replica=choices[0])
    kept = _Kept()

    def in_place(choice: ReplicaLayout) -> int:
        needed = rollout_placements(plan.actor.shape, choice, ranks)
        return sum(kept.elements(sources.get(rank, ()), needed[rank]) for rank in ranks)

    return replace(plan, replica=max(choices, key=in_place))  # max keeps the first of equals


def _in_fewest_nodes(
    replica: ReplicaLayout, ranks: Sequence[int], node_of: Callable[[int], int]
) -> list[ReplicaLayout]:
    def nodes(choice: ReplicaLayout) -> int:
        groups: defaultdict[int, set[int]] = defaultdict(set)
        for index, rank in enumerate(ranks):
            groups[choice.replica_of(index)].add(node_of(rank))
        return sum(len(group) for group in groups.values())

    spread = {choice: nodes(choice) for choice in replica.assignments(len(ranks))}
    fewest = min(spread.values())
    return [choice for choice, count in spread.items() if count == fewest]


class _Kept:
    """Elements that a rank holds of what it needs; equal ranks share placements, counted once."""

    def __init__(self) -> None:
        self._found: dict[tuple[int, int], int] = {}
        self._by_tensor: dict[int, Mapping[str, list[Piece]]] = {}

    def elements(self, held: Placement, needed: Placement) -> int:
        """Summed over pieces."""
        key = id(held), id(needed)
        if key not in self._found:
            wanted = self._by_tensor.setdefault(id(needed), _by_tensor(needed))
            self._found[key] = sum(
                common.numel
                for piece in held
                for other in wanted.get(piece.tensor, ())
                if (common := piece.box.intersect(other.box)) is not None
            )
        return self._found[key]


def _by_tensor(placement: Placement) -> Mapping[str, list[Piece]]:
    found: defaultdict[str, list[Piece]] = defaultdict(list)
    for piece in placement:
        found[piece.tensor].append(piece)
    return found

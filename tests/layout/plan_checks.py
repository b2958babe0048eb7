"""What holds for every plan, counted independently of the planner."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import product

import numpy as np

from megarl.layout import ModelShape, Piece, Placement, Plan, hf_tensors


def check_plan(plan: Plan, ranks: range) -> None:
    """Received elements are the bound; both ends of every message list the same."""
    received = {(src, dst): [] for src in ranks for dst in ranks}
    for rank in ranks:
        assert plan.received_elements(rank) == plan.lower_bound_elements(rank)
        for t in plan.receives(rank):
            received[t.src, rank].append(t)
    for rank in ranks:
        sent = {peer: [] for peer in ranks}
        for t in plan.sends(rank):
            sent[t.dst].append(t)
        assert all(sent[peer] == received[rank, peer] for peer in ranks)
    assert all(t.box.numel > 0 for t in plan.transfers)


def crossing(
    sources: Mapping[int, Placement], destinations: Mapping[int, Placement], nodes: Sequence[int]
) -> dict[int, int]:
    """Node -> different elements that its ranks need and none of them holds, counted one by one."""
    held: defaultdict[int, set[tuple[str, tuple[int, ...]]]] = defaultdict(set)
    needed: defaultdict[int, set[tuple[str, tuple[int, ...]]]] = defaultdict(set)
    for side, found in ((sources, held), (destinations, needed)):
        for rank, placement in side.items():
            for piece in placement:
                spans = map(range, piece.box.lo, piece.box.hi)
                found[nodes[rank]].update((piece.tensor, at) for at in product(*spans))
    return {node: len(needed[node] - held[node]) for node in needed}


def crossed(plan: Plan, nodes: Sequence[int]) -> dict[int, int]:
    """Node -> elements that the plan brings to it from other nodes."""
    found = dict.fromkeys(nodes, 0)
    for t in plan.transfers:
        found[nodes[t.dst]] += t.box.numel if nodes[t.src] != nodes[t.dst] else 0
    return found


def held_by_counting(shape: ModelShape, placement: Placement, needed: Placement) -> int:
    """Needed elements that the placement lacks, counted element by element."""
    tensors = {
        name: np.zeros((max(dims[0], shape.padded_vocab_size), *dims[1:]), dtype=bool)
        for name, dims in hf_tensors(shape).items()
    }

    def index(piece: Piece) -> tuple[slice, ...]:
        return tuple(map(slice, piece.box.lo, piece.box.hi))

    for piece in placement:
        tensors[piece.tensor][index(piece)] = True
    return sum(int((~tensors[piece.tensor][index(piece)]).sum()) for piece in needed)

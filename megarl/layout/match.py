"""The decisions of a plan: which rank takes which box from whom, and who passes it on.

For each part of a tensor that some ranks need: who holds it copies it; else holders on the same
node give it; else one copy of it crosses to the node, dealt over those who need it there, and they
pass their shares on to each other. Nobody receives what it does not need, or anything twice.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from difflib import get_close_matches
from typing import NamedTuple

from megarl.errors import PlanError
from megarl.layout.box import Box
from megarl.layout.deal import GRAIN, deal
from megarl.layout.placement import Piece, Placement
from megarl.layout.spread import Part, Spread, plan_order, spread_by_tensor


class Match(NamedTuple):
    """One decision: `box` goes from the source's piece to the destination's."""

    src: int
    dst: int
    src_piece: Piece
    dst_piece: Piece
    box: Box
    relay: bool
    """Whether the source's piece is one of its destination: it has been received before."""


class Move(NamedTuple):
    """A decision before pieces are looked up."""

    relay: bool
    dst: int
    src: int
    box: Box


def single_node(rank: int) -> int:
    """The default of `node_of`: every rank on node 0."""
    del rank
    return 0


def match_pieces(
    sources: Mapping[int, Placement],
    destinations: Mapping[int, Placement],
    node_of: Callable[[int], int],
    *,
    rank: int | None = None,
    grain: int = GRAIN,
) -> Iterator[Match]:
    """Every decision, or those of the tensors that `rank` holds or needs, in plan order.

    Plan order: tensors in `plan_order`, direct before relayed, then by destination and source.
    """
    held, needed = spread_by_tensor(sources), spread_by_tensor(destinations)
    for tensor in needed:
        if tensor not in held:
            raise _unknown_tensor(tensor, needed[tensor], held)
    mine = None
    if rank is not None:
        sides = (sources.get(rank, ()), destinations.get(rank, ()))
        mine = {piece.tensor for side in sides for piece in side}
    for turn, tensor in enumerate(plan_order(sources)):
        if tensor in needed and (mine is None or tensor in mine):
            yield from _match_tensor(held[tensor], needed[tensor], node_of, turn, grain)


def _match_tensor(
    held: Spread, needed: Spread, node_of: Callable[[int], int], turn: int, grain: int
) -> Iterator[Match]:
    moves: list[Move] = []
    held_parts = held.parts()
    for part in needed.parts():
        _check_covered(part, held, needed)
        for source in held_parts:
            box = source.box.intersect(part.box)
            if box is not None:
                moves += serve(Part(box, source.ranks), part.ranks, node_of, turn, grain)
    for move in sorted(moves):
        wanted = needed.pieces_around(move.dst, move.box)
        side = needed if move.relay else held
        src_piece = side.pieces_around(move.src, move.box)[0]
        yield Match(move.src, move.dst, src_piece, wanted[0], move.box, move.relay)
        for again in wanted[1:]:  # another buffer of the rank: received once, copied there
            first = (src_piece, False) if move.src == move.dst else (wanted[0], True)
            yield Match(move.dst, move.dst, first[0], again, move.box, first[1])


def serve(
    part: Part, needers: tuple[int, ...], node_of: Callable[[int], int], turn: int, grain: int
) -> Iterator[Move]:
    """How every needer comes to a part that `part.ranks` hold."""
    holders = set(part.ranks)
    near: defaultdict[int, list[int]] = defaultdict(list)
    for rank in part.ranks:
        near[node_of(rank)].append(rank)
    lacking: defaultdict[int, list[int]] = defaultdict(list)
    for rank in needers:
        if rank in holders:
            yield Move(False, rank, rank, part.box)
        else:
            lacking[node_of(rank)].append(rank)
    far: list[list[int]] = []
    for node in sorted(lacking):
        givers, takers = near.get(node), lacking[node]
        if givers is None:
            far.append(takers)
            continue
        for share in deal(part.box, [1] * len(takers), len(givers), turn, grain):
            yield Move(False, takers[share.group], givers[share.giver], share.box)
    for share in deal(part.box, [len(takers) for takers in far], len(part.ranks), turn, grain):
        takers = far[share.group]
        entry = takers[share.member]
        yield Move(False, entry, part.ranks[share.giver], share.box)
        yield from (Move(True, rank, entry, share.box) for rank in takers if rank != entry)


def _check_covered(part: Part, held: Spread, needed: Spread) -> None:
    boxes = held.boxes
    if len(boxes[0].lo) != len(part.box.lo):
        raise PlanError(
            f"{needed.pieces_around(part.ranks[0], part.box)[0].tensor}: box {part.box} and box "
            f"{boxes[0]} differ in dims"
        )
    missing = part.box.minus(boxes)
    if missing:
        piece = needed.pieces_around(part.ranks[0], part.box)[0]
        raise PlanError(
            f"rank {part.ranks[0]} needs {piece.tensor} {piece.box} for {piece.buffer}: "
            f"no source holds {missing[0]}; sources hold "
            + ", ".join(map(str, boxes[:8]))
            + (f" and {len(boxes) - 8} more boxes" if len(boxes) > 8 else "")
        )


def _unknown_tensor(tensor: str, needed: Spread, known: Mapping[str, object]) -> PlanError:
    close = get_close_matches(tensor, known, n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    rank = needed.parts()[0].ranks[0]
    return PlanError(f"rank {rank} needs {tensor}, which no source holds{hint}")

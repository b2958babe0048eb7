"""The decisions of a plan: for every destination box, whose copy of it is taken."""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import NamedTuple

from megarl.errors import PlanError
from megarl.layout.box import Box
from megarl.layout.placement import Piece, Placement


class Match(NamedTuple):
    """One decision: `box` goes from the source's piece to the destination's."""

    src: int
    dst: int
    src_piece: Piece
    dst_piece: Piece
    box: Box


@dataclass(slots=True)
class _Held:
    """One distinct source box of a tensor, and everyone who holds exactly this box."""

    box: Box
    ranks: list[int] = field(default_factory=list)
    pieces: list[Piece] = field(default_factory=list)
    by_node: dict[int, list[int]] = field(default_factory=lambda: defaultdict(list))

    def piece_of(self, rank: int) -> Piece:
        return self.pieces[bisect_left(self.ranks, rank)]


class _Need(NamedTuple):
    piece_index: int
    dst: int
    part: int
    """Counts the parts of one destination piece."""
    piece: Piece
    held: _Held
    box: Box


def single_node(rank: int) -> int:
    """The default of `node_of`: every rank on node 0."""
    del rank
    return 0


def match_pieces(
    sources: Mapping[int, Placement],
    destinations: Mapping[int, Placement],
    node_of: Callable[[int], int],
) -> Iterator[Match]:
    """Every decision, in plan order: by position in the destination's placement, then by rank.

    So the transfers of all ranks advance through the model together.
    """
    index = _index(sources, node_of)
    needs: list[_Need] = []
    for dst in sorted(destinations):
        for piece_index, piece in enumerate(destinations[dst]):
            boxes = index.get(piece.tensor)
            if boxes is None:
                raise unknown_tensor(piece.tensor, dst, index)
            needs += _cover(piece_index, dst, piece, boxes, node_of(dst))
    senders = _choose_senders(needs, node_of)
    for need in sorted(needs, key=lambda n: n[:3]):
        src = senders[need[:3]]
        yield Match(src, need.dst, need.held.piece_of(src), need.piece, need.box)


def unknown_tensor(tensor: str, dst: int, known: Mapping[str, object]) -> PlanError:
    """The error for a tensor that no source has."""
    close = get_close_matches(tensor, known, n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    return PlanError(f"rank {dst} needs {tensor}, which no source holds{hint}")


def _index(
    sources: Mapping[int, Placement], node_of: Callable[[int], int]
) -> dict[str, list[_Held]]:
    """Tensor -> its distinct boxes, sorted, each with its holders in rank order."""
    index: defaultdict[str, dict[Box, _Held]] = defaultdict(dict)
    for rank in sorted(sources):
        node = node_of(rank)
        for piece in sources[rank]:
            for known in index[piece.tensor]:
                _check_dims(piece, known)
                break
            held = index[piece.tensor].setdefault(piece.box, _Held(piece.box))
            if not held.ranks or held.ranks[-1] != rank:  # a second copy on a rank adds nothing
                held.ranks.append(rank)
                held.pieces.append(piece)
                held.by_node[node].append(rank)
    return {tensor: [boxes[box] for box in sorted(boxes)] for tensor, boxes in index.items()}


def _check_dims(piece: Piece, known: Box) -> None:
    if len(piece.box.lo) != len(known.lo):
        raise PlanError(f"{piece.tensor}: box {piece.box} and box {known} differ in dims")


def _cover(
    piece_index: int, dst: int, piece: Piece, boxes: list[_Held], node: int
) -> Iterator[_Need]:
    """Cut a destination piece along source boxes: own first, then the node's, then the others'."""

    def distance(held: _Held) -> int:
        at = bisect_left(held.ranks, dst)
        if at < len(held.ranks) and held.ranks[at] == dst:
            return 0
        return 1 if node in held.by_node else 2

    _check_dims(piece, boxes[0].box)
    near = [(held, held.box.intersect(piece.box)) for held in boxes]
    taken: list[Box] = []
    part = 0
    for held, overlap in sorted(near, key=lambda pair: distance(pair[0]) if pair[1] else 3):
        if overlap is None:
            break
        for box in overlap.minus(taken):
            yield _Need(piece_index, dst, part, piece, held, box)
            part += 1
        taken.append(overlap)
    missing = piece.box.minus(taken)
    if missing:
        raise PlanError(
            f"rank {dst} needs {piece.tensor} {piece.box} for {piece.buffer}: "
            f"no source holds {missing[0]}; sources hold "
            + ", ".join(str(held.box) for held in boxes[:8])
            + (f" and {len(boxes) - 8} more boxes" if len(boxes) > 8 else "")
        )


def _choose_senders(
    needs: list[_Need], node_of: Callable[[int], int]
) -> dict[tuple[int, int, int], int]:
    """Need -> sender. Large boxes are dealt first, so that small ones even out the loads."""
    senders: dict[tuple[int, int, int], int] = {}
    load: defaultdict[int, int] = defaultdict(int)
    # The sort is stable: equal boxes stay in order of destination rank and piece.
    for need in sorted(needs, key=lambda n: -n.box.numel):
        ranks = need.held.ranks
        at = bisect_left(ranks, need.dst)
        if at < len(ranks) and ranks[at] == need.dst:
            senders[need[:3]] = need.dst
            continue
        on_node = need.held.by_node.get(node_of(need.dst))
        src = min(on_node or ranks, key=lambda rank: (load[rank], rank))
        load[src] += need.box.numel
        senders[need[:3]] = src
    return senders

"""Who has which part of a tensor: the boxes of many ranks, as disjoint parts and their ranks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import NamedTuple

from megarl.errors import PlanError
from megarl.layout.box import Box
from megarl.layout.placement import Piece, Placement


class Part(NamedTuple):
    """A box, and all ranks that have it inside one of their pieces."""

    box: Box
    ranks: tuple[int, ...]
    """Ascending."""


class Spread:
    """One tensor over all ranks of one side."""

    def __init__(self) -> None:
        self._pieces: defaultdict[int, list[Piece]] = defaultdict(list)
        self._boxes: defaultdict[Box, list[int]] = defaultdict(list)

    def add(self, rank: int, piece: Piece) -> None:
        """Ranks come in ascending order, their pieces in the order of their placement."""
        known = next(iter(self._boxes), piece.box)
        if len(known.lo) != len(piece.box.lo):
            raise PlanError(f"{piece.tensor}: box {piece.box} and box {known} differ in dims")
        ranks = self._boxes[piece.box]
        if not ranks or ranks[-1] != rank:
            ranks.append(rank)
        self._pieces[rank].append(piece)

    @property
    def boxes(self) -> list[Box]:
        """The distinct boxes, sorted."""
        return sorted(self._boxes)

    def parts(self) -> list[Part]:
        """Disjoint parts, sorted by box, each with every rank that has it."""
        parts: list[Part] = []
        for box in sorted(self._boxes):
            cut: list[Part] = []
            for part in parts:
                common = part.box.intersect(box)
                if common is None:
                    cut.append(part)
                    continue
                cut += [Part(rest, part.ranks) for rest in part.box.minus([common])]
                both = sorted({*part.ranks, *self._boxes[box]})
                cut.append(Part(common, tuple(both)))
            rest = box.minus(part.box for part in parts)
            parts = cut + [Part(new, tuple(self._boxes[box])) for new in rest]
        return sorted(parts)

    def pieces_around(self, rank: int, box: Box) -> list[Piece]:
        """The rank's pieces that contain a part, in the order of its placement."""
        return [piece for piece in self._pieces[rank] if piece.box.contains(box)]


def spread_by_tensor(placements: Mapping[int, Placement]) -> dict[str, Spread]:
    """Tensor -> who has what of it."""
    spreads: defaultdict[str, Spread] = defaultdict(Spread)
    for rank in sorted(placements):
        for piece in placements[rank]:
            spreads[piece.tensor].add(rank, piece)
    return dict(spreads)


def plan_order(sources: Mapping[int, Placement]) -> tuple[str, ...]:
    """All tensors: the first of every holder, then the second of every holder, and so on.

    So all pipeline stages send from the first round on. A tensor counts at its lowest rank.
    """
    places: dict[str, tuple[int, int]] = {}
    seen: set[int] = set()
    for rank in sorted(sources):
        placement = sources[rank]
        if id(placement) not in seen:  # equal ranks share one placement
            seen.add(id(placement))
            distinct = dict.fromkeys(piece.tensor for piece in placement)
            for index, tensor in enumerate(distinct):
                places.setdefault(tensor, (index, rank))
    return tuple(sorted(places, key=places.__getitem__))

"""The planner in C++: the decisions of `megarl.layout.match`, on int64 tables."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

import megarl_cpp
from megarl.layout.box import Box
from megarl.layout.cost import Totals
from megarl.layout.deal import GRAIN
from megarl.layout.match import Match, single_node
from megarl.layout.placement import Piece, Placement
from megarl.layout.plan import Plan, assemble, make_plan
from megarl.layout.spread import plan_order
from megarl.native.calls import loaded, raise_for


def plan(
    sources: Mapping[int, Placement],
    destinations: Mapping[int, Placement],
    *,
    node_of: Callable[[int], int] | None = None,
    rank: int | None = None,
    grain: int = GRAIN,
) -> Plan:
    """`layout.plan.make_plan`, decision for decision, with its arguments and errors."""
    node = node_of or single_node
    try:
        tables = _Tables(sources, destinations, node)
        cells = tables.match(grain, rank, totals=False)
    except _Uncovered:  # the pure planner says exactly what is missing
        return make_plan(sources, destinations, node_of=node_of, rank=rank, grain=grain)
    matches = list(tables.matches(cells))
    return assemble(matches, sources, destinations, node_of=node_of, rank=rank, grain=grain)


def plan_totals(
    sources: Mapping[int, Placement],
    destinations: Mapping[int, Placement],
    *,
    node_of: Callable[[int], int] | None = None,
    grain: int = GRAIN,
) -> dict[int, Totals]:
    """What each rank would move, without the transfers themselves: fit for thousands of ranks."""
    node = node_of or single_node
    try:
        cells = _Tables(sources, destinations, node).match(grain, None, totals=True)
    except _Uncovered:
        make_plan(sources, destinations, node_of=node_of, grain=grain)
        raise
    found = {rank: Totals(*rest) for rank, *rest in cells.reshape(-1, 6).tolist()}
    nothing = Totals(0, 0, 0, 0, 0)
    return {rank: found.get(rank, nothing) for rank in sorted({*sources, *destinations})}


class _Uncovered(Exception):
    """The tables have no plan."""


class _Tables:
    """Both sides as int64 tables; a placement that several ranks share is entered once."""

    def __init__(
        self,
        sources: Mapping[int, Placement],
        destinations: Mapping[int, Placement],
        node_of: Callable[[int], int],
    ) -> None:
        self._tensors = {name: number for number, name in enumerate(plan_order(sources))}
        self._num_dims: dict[int, int] = {}
        self._pieces: list[Piece] = []
        self._flat: list[int] = []
        self._spans: dict[int, tuple[int, int]] = {}
        self._sources = self._rows(sources, node_of)
        self._destinations = self._rows(destinations, node_of)

    def match(self, grain: int, rank: int | None, *, totals: bool) -> NDArray[np.int64]:
        """The decisions' cells; raises _Uncovered, and ValueError for a grain below 1."""
        if grain < 1:
            raise ValueError(f"grain is {grain}: give 1 element or more")
        cpu = loaded(megarl_cpp.cpu)
        pieces = np.array(self._flat, dtype=np.int64)
        handle, count = ctypes.c_void_p(), ctypes.c_int64()
        status = cpu.megarl_match(
            *(pieces.ctypes.data, len(self._pieces), len(self._tensors)),
            *(self._sources.ctypes.data, len(self._sources)),
            *(self._destinations.ctypes.data, len(self._destinations)),
            *(grain, int(rank is None), rank or 0, int(totals)),
            *(ctypes.byref(handle), ctypes.byref(count)),
        )
        if status == megarl_cpp.UNCOVERED:
            raise _Uncovered
        raise_for(status, 0)
        try:
            address = cpu.megarl_match_cells(handle) or 0
            cells = (ctypes.c_int64 * count.value).from_address(address) if count.value else ()
            return np.array(cells, dtype=np.int64)
        finally:
            cpu.megarl_match_free(handle)

    def matches(self, cells: NDArray[np.int64]) -> Iterator[Match]:
        """Rows of cells as decisions."""
        for src, dst, src_piece, dst_piece, relay, *bounds in cells.reshape(
            -1, megarl_cpp.MATCH_COLUMNS
        ).tolist():
            piece = self._pieces[dst_piece]
            num_dims = len(piece.box.lo)
            box = Box(tuple(bounds[:num_dims]), tuple(bounds[4 : 4 + num_dims]))
            yield Match(src, dst, self._pieces[src_piece], piece, box, bool(relay))

    def _rows(
        self, placements: Mapping[int, Placement], node_of: Callable[[int], int]
    ) -> NDArray[np.int64]:
        """A row per rank, ascending."""
        rows = [(rank, node_of(rank), *self._span(placements[rank])) for rank in sorted(placements)]
        return np.array(rows, dtype=np.int64).reshape(-1, megarl_cpp.RANK_COLUMNS)

    def _span(self, placement: Placement) -> tuple[int, int]:
        if id(placement) not in self._spans:
            start = len(self._pieces)
            for piece in placement:
                lo, hi = piece.box.lo, piece.box.hi
                number = self._tensors.setdefault(piece.tensor, len(self._tensors))
                num_dims = self._num_dims.setdefault(number, len(lo))
                if num_dims != len(lo) or num_dims > megarl_cpp.DIMS:
                    raise _Uncovered
                pad = megarl_cpp.DIMS - num_dims
                self._flat += (number, *lo, *(0,) * pad, *hi, *(1,) * pad)
            self._pieces += placement
            self._spans[id(placement)] = start, len(self._pieces)
        return self._spans[id(placement)]

"""Rows over ranks: who owns which row of a step, and moving rows from owners to owners.

Every rank computes the same maps from the same per-row scalars, so both ends of a message know its
length and nothing but the numbers travels. No rank ever gathers the whole batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from megarl.mesh.universe import Universe

ROWS_TAG = 31


@dataclass(frozen=True, slots=True)
class RowMap:
    """Universe rank that owns each row of a step."""

    owner: tuple[int, ...]

    def rows_of(self, rank: int) -> list[int]:
        """Rows that `rank` owns, ascending."""
        return [row for row, owner in enumerate(self.owner) if owner == rank]


def move_rows(
    universe: Universe,
    values: Mapping[int, Tensor],
    lengths: Sequence[int],
    source: RowMap,
    target: RowMap,
    dtype: torch.dtype,
) -> dict[int, Tensor]:
    """Bring each row's 1-D numbers from its owner in `source` to its owner in `target`.

    values: row -> [lengths[row]] of the rows that this rank owns in `source`. Returns row ->
    [lengths[row]] of those it owns in `target`. All ranks call it together; each pair of ranks
    exchanges at most one message.
    """
    here = universe.rank
    routes: dict[tuple[int, int], list[int]] = {}
    for row, pair in enumerate(zip(source.owner, target.owner, strict=True)):
        if here in pair:
            routes.setdefault(pair, []).append(row)
    arrived = {row: values[row] for row in routes.pop((here, here), [])}
    works, inbox, leaving = [], [], []
    for (sender, receiver), rows in routes.items():
        sizes = [lengths[row] for row in rows]
        if not sum(sizes):
            arrived.update((row, torch.zeros(0, dtype=dtype)) for row in rows if receiver == here)
        elif sender == here:
            leaving.append(torch.cat([values[row].to(dtype) for row in rows]))
            works.append(universe.send(leaving[-1].view(torch.uint8), receiver, ROWS_TAG))
        else:
            flat = torch.empty(sum(sizes), dtype=dtype)
            works.append(universe.receive(flat.view(torch.uint8), sender, ROWS_TAG))
            inbox.append((rows, sizes, flat))
    for work in works:
        work.wait()
    for rows, sizes, flat in inbox:
        arrived.update(zip(rows, flat.split(sizes), strict=True))
    return arrived

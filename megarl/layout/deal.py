"""Deals copies of a box out to those who give them, so that all give the same."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from megarl.layout.box import Box

GRAIN = 1 << 16
"""Elements below which a box is not cut for the sake of balance: a message has its price too."""


class Share(NamedTuple):
    """Rows of the box that `giver` hands to `member` of `group`; all are indices."""

    group: int
    member: int
    giver: int
    box: Box


def deal(
    box: Box, group_sizes: Sequence[int], givers: int, turn: int, grain: int = GRAIN
) -> Iterator[Share]:
    """Every group gets the box once, each of its members an equal share of the rows.

    The copies lie one after the other on a line, which is cut into equal parts, one for each giver:
    at most groups + givers - 1 cuts, and none where the one number divides the other. A pure
    function of its arguments. turn: who begins; so that boxes too small to be cut go round.
    """
    dim = next((d for d, size in enumerate(box.shape) if size > 1), 0)
    rows = box.shape[dim]
    units = max(1, min(rows, box.numel // grain))
    line = len(group_sizes) * units
    for group, size in enumerate(group_sizes):
        first = group * units
        cuts = {-(-giver * line // givers) - first for giver in range(givers + 1)}
        cuts |= {-(-member * units // size) for member in range(size + 1)}
        inside = sorted(cut for cut in {0, units, *cuts} if 0 <= cut <= units)
        for start, stop in zip(inside, inside[1:], strict=False):
            yield Share(
                group,
                (start * size // units + turn) % size,
                ((first + start) * givers // line + turn) % givers,
                _rows(box, dim, start * rows // units, stop * rows // units),
            )


def _rows(box: Box, dim: int, start: int, stop: int) -> Box:
    lo, hi = list(box.lo), list(box.hi)
    lo[dim], hi[dim] = box.lo[dim] + start, box.lo[dim] + stop
    return Box(tuple(lo), tuple(hi))

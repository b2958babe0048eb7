"""Boxes: intersection and difference against plain sets of points."""

from __future__ import annotations

from itertools import product

from hypothesis import given
from hypothesis import strategies as st

from megarl.layout.box import Box, contiguous_strides, whole

sides = st.tuples(st.integers(0, 5), st.integers(1, 4))
boxes = st.tuples(sides, sides).map(
    lambda pair: Box(tuple(lo for lo, _ in pair), tuple(lo + n for lo, n in pair))
)


def points(box: Box) -> set[tuple[int, ...]]:
    return set(product(*map(range, box.lo, box.hi)))


@given(boxes, boxes)
def test_intersection_and_containment(a: Box, b: Box) -> None:
    common = a.intersect(b)
    assert (points(common) if common else set()) == points(a) & points(b)
    assert a.contains(b) == (points(a) >= points(b))
    assert a.numel == len(points(a))


@given(boxes, st.lists(boxes, max_size=4))
def test_difference_is_disjoint_and_complete(a: Box, others: list[Box]) -> None:
    parts = a.minus(others)
    union = set().union(*map(points, parts))
    assert union == points(a) - set().union(*map(points, others))
    assert len(union) == sum(part.numel for part in parts)


def test_strides_and_text() -> None:
    assert contiguous_strides((2, 3, 4)) == (12, 4, 1)
    assert whole((2, 3)) == Box((0, 0), (2, 3))
    assert str(whole((2, 3))) == "[0:2, 0:3]"

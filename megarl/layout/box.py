"""Half-open boxes of integer coordinates: the one coordinate system of all layouts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod


@dataclass(frozen=True, slots=True, order=True)
class Box:
    """The elements [lo, hi) of a full Hugging Face tensor; one entry per dim of the tensor."""

    lo: tuple[int, ...]
    hi: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Extent along each dim."""
        return tuple(h - low for low, h in zip(self.lo, self.hi, strict=True))

    @property
    def numel(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    def intersect(self, other: Box) -> Box | None:
        """The common elements, or None where there are none."""
        lo = tuple(map(max, self.lo, other.lo))
        hi = tuple(map(min, self.hi, other.hi))
        return Box(lo, hi) if all(map(int.__lt__, lo, hi)) else None

    def contains(self, other: Box) -> bool:
        """Whether every element of `other` is an element of this box."""
        return all(map(int.__le__, self.lo, other.lo)) and all(map(int.__ge__, self.hi, other.hi))

    def minus(self, others: Iterable[Box]) -> list[Box]:
        """Disjoint boxes, in a fixed order, that make up what no box of `others` covers."""
        rest = [self]
        for other in others:
            rest = [part for box in rest for part in box._without(other)]
        return rest

    def _without(self, other: Box) -> list[Box]:
        overlap = self.intersect(other)
        if overlap is None:
            return [self]
        parts: list[Box] = []
        lo, hi = list(self.lo), list(self.hi)
        for dim in range(len(lo)):
            if lo[dim] < overlap.lo[dim]:
                parts.append(Box(tuple(lo), (*hi[:dim], overlap.lo[dim], *hi[dim + 1 :])))
            if overlap.hi[dim] < hi[dim]:
                parts.append(Box((*lo[:dim], overlap.hi[dim], *lo[dim + 1 :]), tuple(hi)))
            lo[dim], hi[dim] = overlap.lo[dim], overlap.hi[dim]
        return parts

    def __str__(self) -> str:
        """As an index: [lo:hi, lo:hi]."""
        return "[" + ", ".join(f"{a}:{b}" for a, b in zip(self.lo, self.hi, strict=True)) + "]"


def whole(shape: Iterable[int]) -> Box:
    """The box of a whole tensor of this shape."""
    hi = tuple(shape)
    return Box((0,) * len(hi), hi)


def contiguous_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Row-major strides of this shape, in elements."""
    strides = [1] * len(shape)
    for dim in range(len(shape) - 2, -1, -1):
        strides[dim] = strides[dim + 1] * shape[dim + 1]
    return tuple(strides)

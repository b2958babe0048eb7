"""Regions of buffers, checked once and kept as the int64 table that the kernels read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import prod
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

import megarl_cpp

DType = Literal["float32", "bfloat16", "float16", "raw1", "raw2", "raw4", "raw8"]
"""Casts exist between float32 and bfloat16; rawN moves N-byte elements bit for bit."""

ITEM_BYTES: Mapping[DType, int] = {
    "float32": 4,
    "bfloat16": 2,
    "float16": 2,
    "raw1": 1,
    "raw2": 2,
    "raw4": 4,
    "raw8": 8,
}
CODES: Mapping[DType, int] = {
    "float32": megarl_cpp.FLOAT32,
    "bfloat16": megarl_cpp.BFLOAT16,
    "float16": megarl_cpp.BITS16,
    "raw1": megarl_cpp.BITS8,
    "raw2": megarl_cpp.BITS16,
    "raw4": megarl_cpp.BITS32,
    "raw8": megarl_cpp.BITS64,
}

MAX_ROWS_NUMEL = 1 << 32
"""The GPU kernels count the elements of a region of several rows in 32 bits."""


class Region(NamedTuple):
    """One strided box of a buffer; a plain tuple of these six serves as well."""

    base_pointer: int
    """Address of the buffer."""
    base_numel: int
    offset: int
    """Of the region's first element."""
    strides: tuple[int, ...]
    shape: tuple[int, ...]
    flat_offset: int
    """Where the region starts in the contiguous buffer of `pack` and `unpack`."""


class RegionTable:
    """Regions, checked once and kept as the int64 table that the kernels read.

    Raises ValueError, with the numbers, for a region that is empty, has a negative stride, more
    than four dims that cannot be merged, or leaves its buffer.
    """

    def __init__(
        self, regions: Iterable[tuple[int, int, int, tuple[int, ...], tuple[int, ...], int]]
    ) -> None:
        """Check the regions and lay them out."""
        rows: list[tuple[int, ...]] = []
        tile = 0
        for index, region in enumerate(map(Region._make, regions)):
            numel = prod(region.shape)
            rows.append((*_row(index, region), tile))
            tile += -(-numel // megarl_cpp.TILE)
        self.rows: NDArray[np.int64] = np.array(rows, dtype=np.int64).reshape(
            -1, megarl_cpp.REGION_COLUMNS
        )
        """[number of regions, 13]."""
        self.numels: NDArray[np.int64] = self.rows[:, 3:7].prod(axis=1)
        self.num_tiles = tile
        self.flat_numel = int((self.rows[:, 11] + self.numels).max(initial=0))
        """Elements of the contiguous buffer that the regions reach."""
        self._overlap = _first_overlap(self.rows[:, 11], self.numels)

    def __len__(self) -> int:
        """Number of regions."""
        return len(self.rows)

    @property
    def is_one_run(self) -> bool:
        """Whether there is one region, without gaps."""
        return len(self.rows) == 1 and bool(
            (self.rows[0, 3:6] == 1).all() and (self.rows[0, 10] == 1 or self.rows[0, 6] == 1)
        )

    def for_device(self) -> NDArray[np.int64]:
        """What the CUDA calls read, to be uploaded: all rows, then each tile's region, int64 1-D.

        Raises ValueError for a region of several rows with 2^32 elements or more.
        """
        too_large = np.flatnonzero(
            (self.numels >= MAX_ROWS_NUMEL) & (self.rows[:, 3:6] != 1).any(axis=1)
        )
        if len(too_large):
            i = int(too_large[0])
            raise ValueError(
                f"region {i} has {self.numels[i]} elements in rows: the GPU kernels take less than "
                f"{MAX_ROWS_NUMEL} where there are gaps; cut it"
            )
        tiles = np.diff(self.rows[:, 12], append=self.num_tiles)
        return np.concatenate([self.rows.reshape(-1), np.repeat(np.arange(len(self)), tiles)])

    def check_flat(self, flat_bytes: int, dtype: DType, *, exclusive: bool) -> None:
        """Raise ValueError unless the regions fit into the contiguous buffer.

        exclusive: also where two regions share a part of it.
        """
        needed = self.flat_numel * ITEM_BYTES[dtype]
        if needed > flat_bytes:
            raise ValueError(
                f"the contiguous buffer has {flat_bytes} bytes: the regions reach {needed} "
                f"({self.flat_numel} elements of {dtype})"
            )
        if exclusive and self._overlap is not None:
            first, second = self._overlap
            raise ValueError(
                f"regions {first} and {second} overlap in the contiguous buffer: they start at "
                f"{self.rows[first, 11]} and {self.rows[second, 11]}, and the first has "
                f"{self.numels[first]} elements"
            )


def check_pairs(src_table: RegionTable, dst_table: RegionTable) -> None:
    """Raise ValueError unless region i has the same number of elements on both sides."""
    if len(src_table) != len(dst_table):
        raise ValueError(f"{len(src_table)} source regions, {len(dst_table)} destinations")
    different = np.flatnonzero(src_table.numels != dst_table.numels)
    if len(different):
        i = int(different[0])
        raise ValueError(
            f"region {i}: source has {src_table.numels[i]} elements, "
            f"destination {dst_table.numels[i]}"
        )


def _row(index: int, region: Region) -> tuple[int, ...]:
    """The region's columns, dims merged where they are contiguous, without the tile."""
    base, base_numel, offset, strides, shape, flat = region
    last = offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
    if min(shape, default=1) < 1 or min(strides, default=0) < 0 or min(offset, flat) < 0:
        raise ValueError(
            f"region {index}: shape {shape}, strides {strides}, offset {offset}, flat offset "
            f"{flat}: sizes must be positive, strides and offsets not negative"
        )
    if last >= base_numel:
        raise ValueError(
            f"region {index}: offset {offset}, shape {shape}, strides {strides} reach element "
            f"{last} of a buffer of {base_numel}"
        )
    dims: list[tuple[int, int]] = []
    for size, stride in zip(shape, strides, strict=True):
        if dims and dims[-1][1] == size * stride:
            dims[-1] = dims[-1][0] * size, stride
        elif size > 1:
            dims.append((size, stride))
    if len(dims) > 4:
        raise ValueError(f"region {index}: shape {shape} keeps {len(dims)} dims: at most 4")
    sizes, steps = zip(*[(1, 0)] * (4 - len(dims)), *dims, strict=True)
    return base, base_numel, offset, *sizes, *steps, flat


def _first_overlap(starts: NDArray[np.int64], numels: NDArray[np.int64]) -> tuple[int, int] | None:
    order = np.argsort(starts, kind="stable")
    late = np.flatnonzero((starts + numels)[order][:-1] > starts[order][1:])
    return (int(order[late[0]]), int(order[late[0] + 1])) if len(late) else None

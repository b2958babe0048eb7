"""The one door to megarl_cpp: the fast planner, and pack, unpack, copy, digest of regions.

A region is a strided box of a buffer. Buffers come as addresses (`Tensor.data_ptr()`); the caller
keeps them alive and does not write to them meanwhile. Sizes are in elements unless named _bytes.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable, Iterator, Mapping
from math import prod
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

import megarl_cpp
from megarl.errors import MegaRLError
from megarl.layout.box import Box
from megarl.layout.match import Match, single_node
from megarl.layout.placement import Piece, Placement
from megarl.layout.plan import Plan, assemble, make_plan

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
_CODES: Mapping[DType, int] = {
    "float32": megarl_cpp.FLOAT32,
    "bfloat16": megarl_cpp.BFLOAT16,
    "float16": megarl_cpp.BITS16,
    "raw1": megarl_cpp.BITS8,
    "raw2": megarl_cpp.BITS16,
    "raw4": megarl_cpp.BITS32,
    "raw8": megarl_cpp.BITS64,
}


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


def available() -> bool:
    """Whether the extension was built."""
    try:
        megarl_cpp.cpu()
    except OSError:
        return False
    return True


def cuda_available() -> bool:
    """Whether the CUDA part was built and sees a device."""
    try:
        return bool(megarl_cpp.cuda().megarl_cuda_devices() > 0)
    except OSError:
        return False


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
        """[number of regions, 13]; upload as it is for the CUDA calls."""
        self.numels: NDArray[np.int64] = self.rows[:, 3:7].prod(axis=1)
        self.num_tiles = tile
        self.flat_numel = int((self.rows[:, 11] + self.numels).max(initial=0))
        """Elements of the contiguous buffer that the regions reach."""
        self._overlap = _first_overlap(self.rows[:, 11], self.numels)

    def __len__(self) -> int:
        """Number of regions."""
        return len(self.rows)

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


def pack(
    table: RegionTable,
    dst_ptr: int,
    dst_bytes: int,
    *,
    src_dtype: DType,
    dst_dtype: DType,
    threads: int = 1,
) -> None:
    """Regions -> contiguous buffer; each lands at its flat_offset (elements of dst_dtype).

    float32 -> bfloat16 rounds to nearest even, NaN stays NaN.
    """
    table.check_flat(dst_bytes, dst_dtype, exclusive=True)
    codes = _CODES[src_dtype], _CODES[dst_dtype]
    _cpu("megarl_pack", table.rows.ctypes.data, len(table), dst_ptr, dst_bytes, *codes, threads)


def unpack(
    table: RegionTable,
    src_ptr: int,
    src_bytes: int,
    *,
    dtype: DType,
    dst_dtype: DType | None = None,
    threads: int = 1,
) -> None:
    """Contiguous buffer of `dtype` -> regions of `dst_dtype` (default: the same)."""
    table.check_flat(src_bytes, dtype, exclusive=False)
    codes = _CODES[dtype], _CODES[dst_dtype or dtype]
    _cpu("megarl_unpack", table.rows.ctypes.data, len(table), src_ptr, src_bytes, *codes, threads)


def copy(
    src_table: RegionTable,
    dst_table: RegionTable,
    *,
    src_dtype: DType,
    dst_dtype: DType,
    threads: int = 1,
) -> None:
    """Region i of one table -> region i of the other, in box order; memory must not overlap."""
    _check_pairs(src_table, dst_table)
    src, dst = src_table.rows.ctypes.data, dst_table.rows.ctypes.data
    codes = _CODES[src_dtype], _CODES[dst_dtype]
    _cpu("megarl_copy", src, dst, len(src_table), *codes, threads)


def digest(
    table: RegionTable, *, dtype: DType, as_dtype: DType | None = None, threads: int = 1
) -> NDArray[np.int64]:
    """A 64-bit digest of each region's content in box order, whatever its strides.

    as_dtype: digest what a receiver of this dtype will hold. One changed element of up to four
    bytes always changes the digest; several changes cancel with a chance of 2^-32 at worst (two
    flipped signs of float32), 2^-64 as a rule. It is no defence against malice.
    """
    out = np.zeros(len(table), dtype=np.int64)
    codes = _CODES[dtype], _CODES[as_dtype or dtype]
    rows = table.rows.ctypes.data
    _cpu("megarl_digest", rows, len(table), *codes, out.ctypes.data, threads)
    return out


def cuda_pack(
    table: RegionTable,
    device_rows: int,
    dst_ptr: int,
    dst_bytes: int,
    *,
    src_dtype: DType,
    dst_dtype: DType,
    stream: int,
) -> None:
    """`pack` on the GPU, in one launch on `stream`; device_rows: address of uploaded `rows`."""
    table.check_flat(dst_bytes, dst_dtype, exclusive=True)
    _cuda_move(table, device_rows, 0, dst_ptr, src_dtype, dst_dtype, stream)


def cuda_unpack(
    table: RegionTable,
    device_rows: int,
    src_ptr: int,
    src_bytes: int,
    *,
    dtype: DType,
    dst_dtype: DType | None = None,
    stream: int,
) -> None:
    """`unpack` on the GPU."""
    table.check_flat(src_bytes, dtype, exclusive=False)
    _cuda_move(table, 0, device_rows, src_ptr, dtype, dst_dtype or dtype, stream)


def cuda_copy(
    src_table: RegionTable,
    dst_table: RegionTable,
    src_rows: int,
    dst_rows: int,
    *,
    src_dtype: DType,
    dst_dtype: DType,
    stream: int,
) -> None:
    """`copy` on the GPU."""
    _check_pairs(src_table, dst_table)
    _cuda_move(src_table, src_rows, dst_rows, 0, src_dtype, dst_dtype, stream)


def cuda_digest(
    table: RegionTable,
    device_rows: int,
    out_ptr: int,
    *,
    dtype: DType,
    as_dtype: DType | None = None,
    stream: int,
) -> None:
    """`digest` on the GPU, added to int64 [len(table)] in device memory, which holds zeros."""
    codes = _CODES[dtype], _CODES[as_dtype or dtype]
    sizes = len(table), table.num_tiles
    _call(_cuda(), "megarl_cuda_digest", device_rows, *sizes, *codes, out_ptr, stream)


def plan(
    sources: Mapping[int, Placement],
    destinations: Mapping[int, Placement],
    *,
    node_of: Callable[[int], int] | None = None,
    rank: int | None = None,
) -> Plan:
    """`layout.plan.make_plan`, decision for decision, with its arguments and errors."""
    node = node_of or single_node
    tables = _PieceTables()
    try:
        source_rows = tables.add(sources, node)
        destination_rows = tables.add(destinations, node)
        matches = list(_match(tables, source_rows, destination_rows, rank))
    except _Uncovered:  # the pure planner says exactly what is missing
        return make_plan(sources, destinations, node_of=node_of, rank=rank)
    return assemble(matches, sources, destinations, node_of=node_of, rank=rank)


class _Uncovered(Exception):
    """The tables have no plan."""


class _PieceTables:
    """Placements as int64 tables; a placement that several ranks share is entered once."""

    def __init__(self) -> None:
        self.pieces: list[Piece] = []
        self.tensors: dict[str, tuple[int, int]] = {}
        self.flat: list[int] = []
        self._spans: dict[int, tuple[int, int]] = {}

    def add(
        self, placements: Mapping[int, Placement], node_of: Callable[[int], int]
    ) -> NDArray[np.int64]:
        """Rank rows, in ascending order of rank."""
        rows = [(rank, node_of(rank), *self._span(placements[rank])) for rank in sorted(placements)]
        return np.array(rows, dtype=np.int64).reshape(-1, megarl_cpp.RANK_COLUMNS)

    def _span(self, placement: Placement) -> tuple[int, int]:
        if id(placement) not in self._spans:
            start = len(self.pieces)
            for piece in placement:
                lo, hi = piece.box.lo, piece.box.hi
                new = len(self.tensors), len(lo)
                number, num_dims = self.tensors.setdefault(piece.tensor, new)
                if num_dims != len(lo) or num_dims > megarl_cpp.DIMS:
                    raise _Uncovered
                pad = megarl_cpp.DIMS - num_dims
                self.flat += (number, *lo, *(0,) * pad, *hi, *(1,) * pad)
            self.pieces += placement
            self._spans[id(placement)] = start, len(self.pieces)
        return self._spans[id(placement)]


def _match(
    tables: _PieceTables,
    sources: NDArray[np.int64],
    destinations: NDArray[np.int64],
    rank: int | None,
) -> Iterator[Match]:
    cpu = _loaded(megarl_cpp.cpu)
    pieces = np.array(tables.flat, dtype=np.int64)
    handle, count = ctypes.c_void_p(), ctypes.c_int64()
    status = cpu.megarl_match(
        *(pieces.ctypes.data, len(tables.pieces), len(tables.tensors)),
        *(sources.ctypes.data, len(sources), destinations.ctypes.data, len(destinations)),
        *(int(rank is None), rank or 0, ctypes.byref(handle), ctypes.byref(count)),
    )
    if status == megarl_cpp.UNCOVERED:
        raise _Uncovered
    _raise_for(status, 0)
    try:
        cells = count.value * megarl_cpp.MATCH_COLUMNS
        address = cpu.megarl_match_rows(handle) or 0
        buffer = (ctypes.c_int64 * cells).from_address(address) if cells else ()
        rows = np.array(buffer, dtype=np.int64).reshape(-1, megarl_cpp.MATCH_COLUMNS).tolist()
    finally:
        cpu.megarl_match_free(handle)
    for src, dst, src_piece, dst_piece, *bounds in rows:
        piece = tables.pieces[dst_piece]
        num_dims = len(piece.box.lo)
        box = Box(tuple(bounds[:num_dims]), tuple(bounds[4 : 4 + num_dims]))
        yield Match(src, dst, tables.pieces[src_piece], piece, box)


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


def _check_pairs(src_table: RegionTable, dst_table: RegionTable) -> None:
    if len(src_table) != len(dst_table):
        raise ValueError(f"{len(src_table)} source regions, {len(dst_table)} destinations")
    different = np.flatnonzero(src_table.numels != dst_table.numels)
    if len(different):
        i = int(different[0])
        raise ValueError(
            f"region {i}: source has {src_table.numels[i]} elements, "
            f"destination {dst_table.numels[i]}"
        )


def _cuda_move(
    table: RegionTable,
    src_rows: int,
    dst_rows: int,
    flat: int,
    src_dtype: DType,
    dst_dtype: DType,
    stream: int,
) -> None:
    if len(table):
        codes = _CODES[src_dtype], _CODES[dst_dtype]
        sizes = len(table), table.num_tiles
        _call(_cuda(), "megarl_cuda_move", src_rows, dst_rows, *sizes, flat, *codes, stream)


def _loaded(load: Callable[[], ctypes.CDLL]) -> ctypes.CDLL:
    try:
        return load()
    except OSError as error:
        raise MegaRLError(f"megarl_cpp is not built: run `make build` ({error})") from error


def _cuda() -> ctypes.CDLL:
    return _loaded(megarl_cpp.cuda)


def _cpu(name: str, *arguments: int) -> None:
    _call(_loaded(megarl_cpp.cpu), name, *arguments)


def _call(library: ctypes.CDLL, name: str, *arguments: int) -> None:
    bad = ctypes.c_int64(-1)
    function: Any = getattr(library, name)
    _raise_for(function(*arguments, ctypes.byref(bad)), bad.value)


def _raise_for(status: int, bad: int) -> None:
    if status == megarl_cpp.OK:
        return
    if status == megarl_cpp.NO_MEMORY:
        raise MemoryError("megarl_cpp: out of memory")
    if status == megarl_cpp.DEVICE:
        raise MegaRLError(f"megarl_cpp: CUDA error {bad}")
    raise ValueError(
        {
            megarl_cpp.OUT_OF_BOUNDS: f"region {bad} leaves its buffer",
            megarl_cpp.UNSUPPORTED: "no such cast: only float32 <-> bfloat16, or equal dtypes",
            megarl_cpp.MISMATCH: f"region {bad} differs in size between source and destination",
        }[status]
    )

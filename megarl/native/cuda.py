"""Pack, unpack, copy and digest of regions on the GPU: one launch each, on a given stream.

A table is uploaded once, as the caller's `RegionTable.for_device()`. What the calls are given must
stay where it is, untouched, until the stream has come past them.
"""

from __future__ import annotations

from dataclasses import dataclass

from megarl.native.calls import call, cuda
from megarl.native.table import CODES, DType, RegionTable, check_pairs


@dataclass(frozen=True, slots=True)
class DeviceTable:
    """A region table and where its uploaded copy lies."""

    table: RegionTable
    pointer: int
    """Device address of `table.for_device()`."""

    @property
    def region_of_tile(self) -> int:
        """Device address of each tile's region."""
        return self.pointer + self.table.rows.nbytes


@dataclass(frozen=True, slots=True)
class Queue:
    """Where a launch goes."""

    device: int
    """CUDA's number of it."""
    stream: int
    """The stream's handle (`torch.cuda.Stream.cuda_stream`)."""


def cuda_pack(
    source: DeviceTable,
    dst_ptr: int,
    dst_bytes: int,
    *,
    src_dtype: DType,
    dst_dtype: DType,
    queue: Queue,
    digests_ptr: int = 0,
) -> None:
    """`pack` on the GPU.

    digests_ptr: int64 [regions] in device memory, written as by `cuda_digest`; 0 is without.
    """
    source.table.check_flat(dst_bytes, dst_dtype, exclusive=True)
    _move(source, None, dst_ptr, src_dtype, dst_dtype, digests_ptr, queue)


def cuda_unpack(
    target: DeviceTable,
    src_ptr: int,
    src_bytes: int,
    *,
    dtype: DType,
    queue: Queue,
    dst_dtype: DType | None = None,
) -> None:
    """`unpack` on the GPU."""
    target.table.check_flat(src_bytes, dtype, exclusive=False)
    _move(None, target, src_ptr, dtype, dst_dtype or dtype, 0, queue)


def cuda_copy(
    source: DeviceTable,
    target: DeviceTable,
    *,
    src_dtype: DType,
    dst_dtype: DType,
    queue: Queue,
    digests_ptr: int = 0,
) -> None:
    """`copy` on the GPU; digests as in `cuda_pack`."""
    check_pairs(source.table, target.table)
    _move(source, target, 0, src_dtype, dst_dtype, digests_ptr, queue)


def cuda_digest(
    regions: DeviceTable,
    out_ptr: int,
    *,
    dtype: DType,
    queue: Queue,
    as_dtype: DType | None = None,
) -> None:
    """`digest` on the GPU, into int64 [regions] in device memory."""
    codes = CODES[dtype], CODES[as_dtype or dtype]
    table = regions.table
    if len(table):
        sizes = len(table), table.num_tiles
        at = regions.pointer, regions.region_of_tile
        to = out_ptr, queue.device, queue.stream
        call(cuda(), "megarl_cuda_digest", *at, *sizes, *codes, *to)


def _move(
    source: DeviceTable | None,
    target: DeviceTable | None,
    flat: int,
    src_dtype: DType,
    dst_dtype: DType,
    digests: int,
    queue: Queue,
) -> None:
    leading = source or target
    assert leading is not None
    if len(leading.table):
        at = source.pointer if source else 0, target.pointer if target else 0
        sizes = len(leading.table), leading.table.num_tiles
        codes = CODES[src_dtype], CODES[dst_dtype]
        to = digests, queue.device, queue.stream
        call(cuda(), "megarl_cuda_move", *at, leading.region_of_tile, *sizes, flat, *codes, *to)

"""Pack, unpack, copy and digest of regions on the GPU, one launch on a given stream."""

from __future__ import annotations

from megarl.native.calls import call, cuda
from megarl.native.table import CODES, DType, RegionTable, check_pairs


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
    check_pairs(src_table, dst_table)
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
    codes = CODES[dtype], CODES[as_dtype or dtype]
    sizes = len(table), table.num_tiles
    call(cuda(), "megarl_cuda_digest", device_rows, *sizes, *codes, out_ptr, stream)


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
        codes = CODES[src_dtype], CODES[dst_dtype]
        sizes = len(table), table.num_tiles
        call(cuda(), "megarl_cuda_move", src_rows, dst_rows, *sizes, flat, *codes, stream)

"""Pack, unpack, copy and digest of regions on the CPU."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from megarl.native.calls import cpu
from megarl.native.table import CODES, DType, RegionTable, check_pairs


def pack(
    table: RegionTable,
    dst_ptr: int,
    dst_bytes: int,
    *,
    src_dtype: DType,
    dst_dtype: DType,
    digests: NDArray[np.int64] | None = None,
    threads: int = 1,
) -> None:
    """Regions -> contiguous buffer; each lands at its flat_offset (elements of dst_dtype).

    float32 -> bfloat16 rounds to nearest even, NaN stays NaN.
    digests: int64 [len(table)], receives what `digest(..., as_dtype=dst_dtype)` gives, on the way.
    """
    table.check_flat(dst_bytes, dst_dtype, exclusive=True)
    flat = dst_ptr, dst_bytes, CODES[src_dtype], CODES[dst_dtype], _address(digests, len(table))
    cpu("megarl_pack", table.rows.ctypes.data, len(table), *flat, threads)


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
    codes = CODES[dtype], CODES[dst_dtype or dtype]
    cpu("megarl_unpack", table.rows.ctypes.data, len(table), src_ptr, src_bytes, *codes, threads)


def copy(
    src_table: RegionTable,
    dst_table: RegionTable,
    *,
    src_dtype: DType,
    dst_dtype: DType,
    digests: NDArray[np.int64] | None = None,
    threads: int = 1,
) -> None:
    """Region i of one table -> region i of the other, in box order; memory must not overlap.

    digests: as in `pack`.
    """
    check_pairs(src_table, dst_table)
    src, dst = src_table.rows.ctypes.data, dst_table.rows.ctypes.data
    codes = CODES[src_dtype], CODES[dst_dtype], _address(digests, len(src_table))
    cpu("megarl_copy", src, dst, len(src_table), *codes, threads)


def digest(
    table: RegionTable, *, dtype: DType, as_dtype: DType | None = None, threads: int = 1
) -> NDArray[np.int64]:
    """A 64-bit digest of each region's content in box order, whatever its strides.

    as_dtype: digest what a receiver of this dtype will hold. One changed element always changes
    the digest; several changes cancel with a chance of 2^-32 at worst. It is no defence against
    malice.
    """
    out = np.zeros(len(table), dtype=np.int64)
    codes = CODES[dtype], CODES[as_dtype or dtype]
    rows = table.rows.ctypes.data
    cpu("megarl_digest", rows, len(table), *codes, out.ctypes.data, threads)
    return out


def _address(digests: NDArray[np.int64] | None, size: int) -> int | None:
    if digests is None:
        return None
    if digests.dtype != np.int64 or digests.shape != (size,) or not digests.flags.c_contiguous:
        raise ValueError(f"digests are {digests.dtype} {digests.shape}: int64 [{size}] is needed")
    return digests.ctypes.data

"""The C interface of the compiled libraries, typed; policy and error messages are the caller's.

Statuses other than OK say what was wrong; `bad` receives the row, or the CUDA error code.
"""

from __future__ import annotations

import ctypes
from ctypes import c_int, c_int64, c_void_p
from functools import cache
from pathlib import Path

OK, OUT_OF_BOUNDS, UNSUPPORTED, MISMATCH, NO_MEMORY, UNCOVERED, DEVICE = range(7)
"""Statuses, as in csrc/api.h."""
FLOAT32, BFLOAT16, BITS8, BITS16, BITS32, BITS64 = range(6)
"""Element types, as in csrc/api.h."""
DIMS = 4
"""Dims of a region, leading ones padded with size 1."""
REGION_COLUMNS = 13
"""int64 columns of a region table: base, base_numel, offset, shape x4, stride x4, flat, tile."""
TILE = 8192
"""Elements that one CUDA block moves."""
RANK_COLUMNS = 4
"""int64 columns of a rank table: rank, node, first piece, piece after the last."""
MATCH_COLUMNS = 13
"""int64 columns of a decision: src, dst, source and destination piece, relay, lo x4, hi x4."""

CPU_LIBRARY = Path(__file__).with_name("libmegarl_cpu.so")
CUDA_LIBRARY = Path(__file__).with_name("libmegarl_cuda.so")

_CPU = {
    "megarl_pack": [
        *(c_void_p, c_int64, c_void_p, c_int64),
        *(c_int, c_int, c_void_p, c_int, c_void_p),
    ],
    "megarl_unpack": [c_void_p, c_int64, c_void_p, c_int64, c_int, c_int, c_int, c_void_p],
    "megarl_copy": [c_void_p, c_void_p, c_int64, c_int, c_int, c_void_p, c_int, c_void_p],
    "megarl_digest": [c_void_p, c_int64, c_int, c_int, c_void_p, c_int, c_void_p],
    "megarl_match": [
        *(c_void_p, c_int64, c_int64),
        *(c_void_p, c_int64, c_void_p, c_int64),
        *(c_int64, c_int, c_int64, c_int, c_void_p, c_void_p),
    ],
}
_CUDA = {
    "megarl_cuda_devices": [],
    "megarl_cuda_move": [
        *(c_void_p, c_void_p, c_void_p, c_int64, c_int64, c_void_p),
        *(c_int, c_int, c_void_p, c_int, c_void_p, c_void_p),
    ],
    "megarl_cuda_digest": [
        *(c_void_p, c_void_p, c_int64, c_int64),
        *(c_int, c_int, c_void_p, c_int, c_void_p, c_void_p),
    ],
}


@cache
def cpu() -> ctypes.CDLL:
    """The CPU library. Raises OSError where it was not built. Calls release the GIL."""
    library = ctypes.CDLL(str(CPU_LIBRARY))
    for name, arguments in _CPU.items():
        function = getattr(library, name)
        function.argtypes, function.restype = arguments, c_int
    library.megarl_match_cells.argtypes = [c_void_p]
    library.megarl_match_cells.restype = c_void_p
    library.megarl_match_free.argtypes = [c_void_p]
    library.megarl_match_free.restype = None
    return library


@cache
def cuda() -> ctypes.CDLL:
    """The CUDA library. Raises OSError where it was not built."""
    library = ctypes.CDLL(str(CUDA_LIBRARY))
    for name, arguments in _CUDA.items():
        function = getattr(library, name)
        function.argtypes, function.restype = arguments, c_int
    return library

"""glibc's allocator on a CPU run: freed memory stays with the process."""

from __future__ import annotations

import ctypes
import sys

# Parameters of mallopt, from glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGEST_FROM_HEAP = 1 << 30


def keep_freed_memory() -> bool:
    """Have malloc give back nothing to the system; False where the C library is not glibc.

    By default every activation above a threshold is mapped and unmapped again, and the kernel
    clears its pages each time: 280,000 page faults, a tenth of the time, in one update of a 25 M
    model. The process keeps its largest memory instead.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _LARGEST_FROM_HEAP) and mallopt(_M_TRIM_THRESHOLD, -1))

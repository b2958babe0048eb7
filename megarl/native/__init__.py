"""The one door to megarl_cpp: the fast planner, and pack, unpack, copy, digest of regions.

A region is a strided box of a buffer. Buffers come as addresses (`Tensor.data_ptr()`); the caller
keeps them alive and does not write to them meanwhile. Sizes are in elements unless named _bytes.
"""

from megarl.native.calls import available, cuda_available
from megarl.native.cuda import (
    DeviceTable,
    Queue,
    cuda_copy,
    cuda_digest,
    cuda_pack,
    cuda_unpack,
)
from megarl.native.planner import plan, plan_totals
from megarl.native.regions import copy, digest, pack, unpack
from megarl.native.table import ITEM_BYTES, DType, Region, RegionTable

__all__ = [
    "ITEM_BYTES",
    "DType",
    "DeviceTable",
    "Queue",
    "Region",
    "RegionTable",
    "available",
    "copy",
    "cuda_available",
    "cuda_copy",
    "cuda_digest",
    "cuda_pack",
    "cuda_unpack",
    "digest",
    "pack",
    "plan",
    "plan_totals",
    "unpack",
]

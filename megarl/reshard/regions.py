"""Moves the regions of a bucket: pack, unpack, copy and digest over live tensors.

Groups of regions share one pair of types, so that each is one call into megarl_cpp; a bucket whose
destination mixes types (an fp32 bias among bf16 weights) becomes several groups.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from megarl import native
from megarl.errors import PlanError
from megarl.layout import Transfer

NAMES: dict[torch.dtype, native.DType] = {
    torch.float32: "float32",
    torch.bfloat16: "bfloat16",
    torch.float16: "float16",
}


class RegionSet:
    """One side (source or destination) of a list of transfers, ready to be moved."""

    def __init__(
        self, transfers: Sequence[Transfer], tensors: Mapping[str, Tensor], side: str, threads: int
    ) -> None:
        self._threads = threads
        self._size = len(transfers)
        self._keep: list[Tensor] = []
        groups: dict[torch.dtype, tuple[list[int], list[native.Region]]] = {}
        flat = 0
        for index, transfer in enumerate(transfers):
            tensor, region = _region(transfer, tensors, side, flat)
            self._keep.append(tensor)
            rows, regions = groups.setdefault(tensor.dtype, ([], []))
            rows.append(index)
            regions.append(region)
            flat += transfer.box.numel
        self.numel = flat
        self._groups = [
            (NAMES[dtype], np.array(rows), native.RegionTable(regions))
            for dtype, (rows, regions) in groups.items()
        ]

    def pack(self, buffer: Tensor) -> None:
        """Regions -> contiguous buffer, cast to its type."""
        for dtype, _, table in self._groups:
            native.pack(
                table,
                buffer.data_ptr(),
                buffer.nbytes,
                src_dtype=dtype,
                dst_dtype=NAMES[buffer.dtype],
                threads=self._threads,
            )

    def unpack(self, buffer: Tensor) -> None:
        """Contiguous buffer -> regions, cast to their types."""
        for dtype, _, table in self._groups:
            native.unpack(
                table,
                buffer.data_ptr(),
                buffer.nbytes,
                dtype=NAMES[buffer.dtype],
                dst_dtype=dtype,
                threads=self._threads,
            )

    def digest(self, wire: torch.dtype) -> NDArray[np.int64]:
        """int64 [number of transfers]: each region's digest as it is in type `wire`."""
        out = np.zeros(self._size, dtype=np.int64)
        for dtype, rows, table in self._groups:
            out[rows] = native.digest(
                table, dtype=dtype, as_dtype=NAMES[wire], threads=self._threads
            )
        return out


def _region(
    transfer: Transfer, tensors: Mapping[str, Tensor], side: str, flat: int
) -> tuple[Tensor, native.Region]:
    name = cast(str, getattr(transfer, f"{side}_buffer"))
    if name not in tensors:
        raise PlanError(f"the plan names {name}, which the live model does not have")
    tensor = tensors[name]
    if tensor.device.type != "cpu":
        raise PlanError(
            f"{name} lies on {tensor.device}: this version moves weights that lie in host memory"
        )
    if not tensor.is_contiguous():
        raise PlanError(f"{name} is not contiguous, so the plan's strides do not hold")
    return tensor, native.Region(
        tensor.data_ptr(),
        tensor.numel(),
        getattr(transfer, f"{side}_offset"),
        getattr(transfer, f"{side}_strides"),
        transfer.box.shape,
        flat,
    )

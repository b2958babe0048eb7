"""Moves the regions of a message: pack, unpack, copy and digest over live tensors.

Regions of one type are one call into megarl_cpp; a message whose destinations mix types (an fp32
bias among bf16 weights) takes several.
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
        self,
        transfers: Sequence[Transfer],
        sources: Mapping[str, Tensor],
        destinations: Mapping[str, Tensor],
        side: str,
        threads: int,
    ) -> None:
        """side: "src" or "dst"; the source of a relay is among the destinations."""
        self._threads = threads
        self._size = len(transfers)
        self._keep: list[Tensor] = []
        groups: dict[torch.dtype, tuple[list[int], list[native.Region]]] = {}
        flat = 0
        for index, transfer in enumerate(transfers):
            tensors = sources if side == "src" and not transfer.relay else destinations
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

    def pack(self, buffer: Tensor, digest: bool = False) -> NDArray[np.int64]:
        """Regions -> contiguous buffer, cast to its type; their digests, where asked for."""
        out = np.zeros(self._size, dtype=np.int64)
        for dtype, rows, table in self._groups:
            digests = np.zeros(len(rows), dtype=np.int64) if digest else None
            native.pack(
                table,
                buffer.data_ptr(),
                buffer.nbytes,
                src_dtype=dtype,
                dst_dtype=NAMES[buffer.dtype],
                digests=digests,
                threads=self._threads,
            )
            out[rows] = 0 if digests is None else digests
        return out

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

    def direct(self, wire: torch.dtype) -> Tensor | None:
        """The memory of a single region that is contiguous and has the wire's type."""
        table = self.only_table(wire)
        if table is None or not table.is_one_run:
            return None
        start = int(table.rows[0, 2])
        return self._keep[0].detach().view(-1)[start : start + self.numel]

    def only_table(self, dtype: torch.dtype | None = None) -> native.RegionTable | None:
        """The one table of all regions, where they have one type (and it is `dtype`)."""
        if len(self._groups) != 1 or dtype is not None and self._groups[0][0] != NAMES[dtype]:
            return None
        return self._groups[0][2]

    @property
    def only_dtype(self) -> native.DType:
        """The type of `only_table`."""
        return self._groups[0][0]


def copy_regions(
    source: RegionSet, target: RegionSet, wire: torch.dtype, digest: bool
) -> NDArray[np.int64]:
    """Regions of the same sizes, one by one, as if over a wire; digests of the sources as `wire`.

    Directly where all targets have the wire's type; else through a buffer of the regions' size.
    """
    src, dst = source.only_table(), target.only_table(wire)
    if src is None or dst is None:
        buffer = torch.empty(source.numel, dtype=wire)
        digests = source.pack(buffer, digest)
        target.unpack(buffer)
        return digests
    digests = np.zeros(len(src), dtype=np.int64)
    native.copy(
        src,
        dst,
        src_dtype=source.only_dtype,
        dst_dtype=NAMES[wire],
        digests=digests if digest else None,
        threads=source._threads,
    )
    return digests


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

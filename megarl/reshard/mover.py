"""Who moves the regions of one table: megarl_cpp on the CPU, or its kernels on a GPU.

A `RegionSet` deals its regions to tables of one type and calls a mover for each; the executor, and
all that plans, is the same for both.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from megarl import native
from megarl.native import DType, RegionTable

NAMES: dict[torch.dtype, DType] = {
    torch.float32: "float32",
    torch.bfloat16: "bfloat16",
    torch.float16: "float16",
}


class Mover(Protocol):
    """Moves regions of tensors that lie on `device`; digests are int64 [regions] there.

    On a GPU the calls queue their work on the current stream and return at once.
    """

    device: torch.device

    def bind(self, table: RegionTable) -> Any:
        """The table as the other calls take it; made once, kept by the caller."""

    def pack(self, table: Any, buffer: Tensor, dtype: DType, digests: Tensor | None) -> None:
        """Regions of type `dtype` -> contiguous buffer, cast to its type; their digests as it."""

    def unpack(self, table: Any, buffer: Tensor, dtype: DType) -> None:
        """Contiguous buffer -> regions of type `dtype`, cast."""

    def copy(
        self, source: Any, target: Any, src: DType, dst: DType, digests: Tensor | None
    ) -> None:
        """Region i of one table -> region i of the other, cast; digests of the sources as dst."""

    def digest(self, table: Any, dtype: DType, as_dtype: DType, out: Tensor) -> None:
        """Digests of regions as they are in type `as_dtype`."""


class HostMover:
    """Regions in host memory, on the caller's thread and `threads - 1` others."""

    device = torch.device("cpu")

    def __init__(self, threads: int) -> None:
        self._threads = threads

    def bind(self, table: RegionTable) -> RegionTable:
        """See Mover."""
        return table

    def pack(
        self, table: RegionTable, buffer: Tensor, dtype: DType, digests: Tensor | None
    ) -> None:
        """See Mover."""
        native.pack(
            table,
            buffer.data_ptr(),
            buffer.nbytes,
            src_dtype=dtype,
            dst_dtype=NAMES[buffer.dtype],
            digests=None if digests is None else digests.numpy(),
            threads=self._threads,
        )

    def unpack(self, table: RegionTable, buffer: Tensor, dtype: DType) -> None:
        """See Mover."""
        native.unpack(
            table,
            buffer.data_ptr(),
            buffer.nbytes,
            dtype=NAMES[buffer.dtype],
            dst_dtype=dtype,
            threads=self._threads,
        )

    def copy(
        self,
        source: RegionTable,
        target: RegionTable,
        src: DType,
        dst: DType,
        digests: Tensor | None,
    ) -> None:
        """See Mover."""
        native.copy(
            source,
            target,
            src_dtype=src,
            dst_dtype=dst,
            digests=None if digests is None else digests.numpy(),
            threads=self._threads,
        )

    def digest(self, table: RegionTable, dtype: DType, as_dtype: DType, out: Tensor) -> None:
        """See Mover."""
        found = native.digest(table, dtype=dtype, as_dtype=as_dtype, threads=self._threads)
        out.copy_(torch.from_numpy(found))

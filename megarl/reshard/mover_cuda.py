"""Regions in the memory of one GPU: a launch per table on the current stream."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from megarl import native
from megarl.native import DeviceTable, DType, Queue, RegionTable
from megarl.reshard.mover import NAMES
from megarl.runtime.streams import current_stream


@dataclass(frozen=True, slots=True)
class Uploaded:
    """A region table in device memory."""

    at: DeviceTable
    memory: Tensor
    """What `at` points to."""


class CudaMover:
    """See Mover. Digests are taken while packing, by the same launch."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def bind(self, table: RegionTable) -> Uploaded:
        """See Mover."""
        memory = torch.from_numpy(table.for_device()).to(self.device)
        return Uploaded(DeviceTable(table, memory.data_ptr()), memory)

    def pack(self, table: Uploaded, buffer: Tensor, dtype: DType, digests: Tensor | None) -> None:
        """See Mover."""
        native.cuda_pack(
            table.at,
            buffer.data_ptr(),
            buffer.nbytes,
            src_dtype=dtype,
            dst_dtype=NAMES[buffer.dtype],
            queue=self._queue(),
            digests_ptr=_address(digests),
        )

    def unpack(self, table: Uploaded, buffer: Tensor, dtype: DType) -> None:
        """See Mover."""
        native.cuda_unpack(
            table.at,
            buffer.data_ptr(),
            buffer.nbytes,
            dtype=NAMES[buffer.dtype],
            dst_dtype=dtype,
            queue=self._queue(),
        )

    def copy(
        self, source: Uploaded, target: Uploaded, src: DType, dst: DType, digests: Tensor | None
    ) -> None:
        """See Mover."""
        native.cuda_copy(
            source.at,
            target.at,
            src_dtype=src,
            dst_dtype=dst,
            queue=self._queue(),
            digests_ptr=_address(digests),
        )

    def digest(self, table: Uploaded, dtype: DType, as_dtype: DType, out: Tensor) -> None:
        """See Mover."""
        where = _address(out)
        native.cuda_digest(table.at, where, dtype=dtype, as_dtype=as_dtype, queue=self._queue())

    def _queue(self) -> Queue:
        index = self.device.index or 0
        return Queue(index, current_stream(self.device).cuda_stream)


def _address(digests: Tensor | None) -> int:
    return 0 if digests is None else digests.data_ptr()

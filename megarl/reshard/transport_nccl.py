"""Rounds of messages between GPUs: one NCCL group call each, on a stream of its own.

The regions of a round are packed and unpacked on a second stream. Events put both in order: a round
goes out when what was moved before it is done, and what is moved after a `wait` begins when the
round has arrived. The host only queues; it waits once, at the end.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch

from megarl.errors import PeerError
from megarl.mesh.group import RankGroup
from megarl.reshard.transport import Parcel
from megarl.runtime.streams import current_stream, new_stream, on_stream

POLL_S = 2e-4


class NcclComm:
    """An NCCL communicator over the ranks of a group, beside torch's; all ranks make it together.

    It is vLLM's binding of NCCL's own calls: torch's process group would bring a watchdog that
    ends the process by its own clock, and connects point-to-point calls lazily, pair by pair.
    """

    def __init__(self, group: RankGroup) -> None:
        from vllm.distributed.device_communicators.pynccl_wrapper import NCCLLibrary

        self._nccl = NCCLLibrary()
        own = bytes(self._nccl.ncclGetUniqueId().internal) if group.rank == 0 else b""
        name = self._nccl.unique_id_from_bytes(group.all_gather(own)[0])
        self._comm = self._nccl.ncclCommInitRank(group.size, name, group.rank)

    def abort(self) -> None:
        """End what is under way; it is of no use after."""
        self._nccl.ncclCommAbort(self._comm)

    def exchange(self, receives: Sequence[Parcel], sends: Sequence[Parcel], stream: int) -> None:
        """Queue all messages on a stream, as one call; they go at the same time."""
        self._nccl.ncclGroupStart()
        for call, parcels in ((self._nccl.ncclRecv, receives), (self._nccl.ncclSend, sends)):
            for parcel in parcels:
                call(
                    ctypes.c_void_p(parcel.tensor.data_ptr()),
                    parcel.tensor.nbytes,
                    NCCL_UINT8,
                    parcel.peer,
                    self._comm,
                    ctypes.c_void_p(stream),
                )
        self._nccl.ncclGroupEnd()


NCCL_UINT8 = 1
"""Of NCCL's ncclDataType_t."""


@dataclass(frozen=True, slots=True)
class Exchange:
    """A round under way."""

    arrived: Any
    """An event."""
    what: str
    sources: tuple[int, ...]
    targets: tuple[int, ...]


class NcclWire:
    """See Wire."""

    def __init__(self, group: RankGroup, device: torch.device) -> None:
        """All ranks of the group make it together; the communicator is kept with the group."""
        self._group, self._device = group, device
        self._comm = group.kept(NcclComm, lambda: NcclComm(group)) if group.size > 1 else None
        self._move = new_stream(device)
        self._wire = new_stream(device, urgent=True)
        self._under_way: list[Exchange] = []

    def moving(self) -> AbstractContextManager[Any]:
        """See Wire."""
        self._move.wait_stream(current_stream(self._device))
        return on_stream(self._move)

    def start(self, receives: Sequence[Parcel], sends: Sequence[Parcel], what: str) -> Exchange:
        """See Wire."""
        self._wire.wait_stream(self._move)
        if self._comm is not None and (receives or sends):
            self._comm.exchange(receives, sends, self._wire.cuda_stream)
        exchange = Exchange(
            self._wire.record_event(),
            what,
            tuple(sorted({parcel.peer for parcel in receives})),
            tuple(sorted({parcel.peer for parcel in sends})),
        )
        self._under_way.append(exchange)
        return exchange

    def wait(self, exchange: Exchange) -> None:
        """See Wire."""
        self._move.wait_event(exchange.arrived)

    def beside(self, exchange: Exchange, work: Callable[[], None]) -> None:
        """See Wire."""
        work()
        self.wait(exchange)

    def finish(self) -> None:
        """See Wire."""
        for exchange in self._under_way:
            self._await(exchange)
        self._under_way = []
        self._move.synchronize()

    def _await(self, exchange: Exchange) -> None:
        """A peer that is gone leaves NCCL's call unfinished for ever: look until time is up."""
        limit = self._group.timeout.total_seconds()
        deadline = time.monotonic() + limit
        while not exchange.arrived.query():
            if time.monotonic() > deadline:
                if self._comm is not None:  # or its kernel would wait, and might still write
                    self._comm.abort()
                self._under_way = []
                raise PeerError(
                    f"rank {self._group.rank} waited for ranks "
                    f"{sorted({*exchange.sources, *exchange.targets})} in vain ({exchange.what}: "
                    f"to send to it: {list(exchange.sources)}, to take from it: "
                    f"{list(exchange.targets)}): nothing came through in {limit:.0f} s"
                )
            time.sleep(POLL_S)

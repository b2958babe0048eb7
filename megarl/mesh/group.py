"""A group of ranks with messages, reductions and node numbers, beside torch's default one."""

from __future__ import annotations

import pickle
import socket
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")

ABORT_TAG = 73
"""Nobody sends under it."""


def gloo_reason(error: RuntimeError) -> str:
    """What gloo says about a failure, without its advice on where to report it."""
    return str(error).split(". This is typically")[0]


class RankGroup:
    """Ranks 0..size-1 over gloo; all of them make it together, through one store."""

    def __init__(self, store: dist.Store, rank: int, size: int, timeout: timedelta) -> None:
        self.rank, self.size, self.timeout = rank, size, timeout
        self._kept: dict[type[Any], Any] = {}
        # torch ships no type of this class's methods.
        self._group: Any = dist.ProcessGroupGloo(store, rank, size, timeout)
        self.hosts: tuple[str, ...] = tuple(self.all_gather(socket.gethostname()))
        nodes = sorted(set(self.hosts), key=self.hosts.index)
        self.node_of: tuple[int, ...] = tuple(nodes.index(host) for host in self.hosts)

    def send(self, tensor: Tensor, to: int, tag: int = 0) -> dist.Work:
        """Start sending a contiguous CPU tensor to rank `to`."""
        return self._group.send([tensor], to, tag)

    def receive(self, tensor: Tensor, source: int, tag: int = 0) -> dist.Work:
        """Start receiving into a contiguous CPU tensor from rank `source`."""
        return self._group.recv([tensor], source, tag)

    def all_reduce(self, tensor: Tensor, op: Any = dist.ReduceOp.SUM) -> Tensor:
        """Reduce a CPU tensor over all ranks, in place."""
        if self.size > 1:
            options = dist.AllreduceOptions()
            options.reduceOp = op
            self._group.allreduce([tensor], options).wait()
        return tensor

    def all_gather(self, value: Any) -> list[Any]:
        """Every rank's small picklable value, in rank order."""
        if self.size == 1:
            return [value]
        blob = torch.frombuffer(bytearray(pickle.dumps(value)), dtype=torch.uint8)
        length = torch.tensor([blob.numel()])
        lengths = [torch.zeros_like(length) for _ in range(self.size)]
        self._group.allgather([lengths], [length]).wait()
        longest = int(max(lengths))
        padded = torch.zeros(longest, dtype=torch.uint8)
        padded[: blob.numel()] = blob
        blobs = [torch.zeros_like(padded) for _ in range(self.size)]
        self._group.allgather([blobs], [padded]).wait()
        pairs = zip(blobs, lengths, strict=True)
        return [pickle.loads(b[: int(n)].numpy().tobytes()) for b, n in pairs]

    def gather(self, value: Any, to: int) -> list[Any]:
        """Every rank's picklable value, in rank order, on rank `to`; [] elsewhere.

        For what is too large to be on all of them: each value travels once, as it is.
        """
        blob = torch.frombuffer(bytearray(pickle.dumps(value)), dtype=torch.uint8)
        lengths = self.all_gather(blob.numel())
        if self.rank != to:
            self.send(blob, to).wait()
            return []
        blobs = [torch.empty(length, dtype=torch.uint8) for length in lengths]
        waits = [self.receive(blobs[rank], rank) for rank in range(self.size) if rank != to]
        for wait in waits:
            wait.wait()
        return [
            value if rank == to else pickle.loads(found.numpy().tobytes())
            for rank, found in enumerate(blobs)
        ]

    def kept(self, kind: type[T], make: Callable[[], T]) -> T:
        """What is made once for the group, at the first call (such as a communicator)."""
        if kind not in self._kept:
            self._kept[kind] = make()
        found: T = self._kept[kind]
        return found

    def abort(self) -> None:
        """End every wait on this group at once, here and on its peers; it is of no use after.

        Any thread may call it while another one waits.
        """
        if self.size > 1:
            # gloo closes all connections of a group when one wait on it is over in vain.
            with suppress(RuntimeError):
                nothing = self.receive(torch.empty(1), (self.rank + 1) % self.size, ABORT_TAG)
                nothing.wait(timedelta(milliseconds=1))

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.size > 1:
            self._group.barrier().wait()

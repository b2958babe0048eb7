"""Memory that only training needs, away from the device while rollouts are made.

Adam's states, fp32 main weights and gradients go to host memory (pinned, where the device is a GPU)
and come back bit for bit. It is done below the tensors, by taking their storages' memory: every
view (Megatron's buckets, `main_grad`, the optimizer's shards) stays what it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from megarl.runtime.device import on_cuda, release_freed_memory, synchronize

Storage = torch.UntypedStorage
MIN_BYTES = 64
"""What is smaller, such as Adam's step counts, stays."""


class Offload:
    """Storages that leave their device and come back. The tensors may not be used meanwhile."""

    def __init__(self, tensors: Callable[[], Iterable[Tensor]]) -> None:
        """tensors: asked for at every `leave`, since Adam has no states before its first step."""
        self._tensors = tensors
        self._hosts: dict[int, Tensor] = {}
        self._away: list[tuple[Storage, Tensor]] = []

    @property
    def away(self) -> bool:
        """Whether the memory is away."""
        return bool(self._away)

    def leave(self) -> int:
        """Give the device's memory back; returns the bytes, 0 where it is away already.

        Host memory for the copies is taken at the first call and kept.
        """
        if self._away:
            return 0
        hosts: dict[int, Tensor] = {}
        for storage in _storages(self._tensors()):
            host = self._hosts.get(storage._cdata)
            if host is None or host.nbytes != storage.nbytes():
                host = torch.empty(storage.nbytes(), dtype=torch.uint8, pin_memory=on_cuda())
            host.copy_(_bytes(storage), non_blocking=True)
            hosts[storage._cdata] = host
            self._away.append((storage, host))
        self._hosts = hosts
        synchronize()  # the copies are complete before their sources go
        for storage, _ in self._away:
            storage.resize_(0)
        release_freed_memory()
        return sum(host.nbytes for _, host in self._away)

    def come_back(self) -> None:
        """Take the memory again, with what was in it; nothing where it is there."""
        for storage, host in self._away:
            storage.resize_(host.nbytes)
            _bytes(storage).copy_(host, non_blocking=True)
        self._away = []


def optimizer_tensors(optimizer: Any, parameters: Sequence[Tensor]) -> Iterator[Tensor]:
    """States and main weights of a Megatron optimizer, without what shares the model's memory.

    The model's parameters stay: the weight sync reads them.
    """
    stay = {parameter.untyped_storage()._cdata for parameter in parameters}
    for each in getattr(optimizer, "chained_optimizers", [optimizer]):
        adam = each.optimizer
        if adam is None:  # this rank holds nothing of it
            continue
        mains = [main for group in adam.param_groups for main in group["params"]]
        states = [value for state in adam.state.values() for value in state.values()]
        for tensor in (*mains, *states):
            if isinstance(tensor, Tensor) and tensor.untyped_storage()._cdata not in stay:
                yield tensor


def gradient_tensors(chunks: Iterable[Any]) -> Iterator[Tensor]:
    """The gradient buffers of Megatron's DDP wrappers."""
    for chunk in chunks:
        for buffer in (*chunk.buffers, *chunk.expert_parallel_buffers):
            yield buffer.grad_data


def _storages(tensors: Iterable[Tensor]) -> Iterator[Storage]:
    """Each storage once."""
    seen = set()
    for tensor in tensors:
        storage = tensor.untyped_storage()
        if storage._cdata not in seen and storage.nbytes() >= MIN_BYTES:
            seen.add(storage._cdata)
            yield storage


def _bytes(storage: Storage) -> Tensor:
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)  # type: ignore[call-overload]

"""Messages between two ranks over a group of ranks, and waiting for them by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from megarl.errors import PeerError
from megarl.mesh.group import RankGroup, gloo_reason


@dataclass(frozen=True, slots=True)
class Wait:
    """One message under way."""

    work: dist.Work
    rank: int
    peer: int
    what: str


def send(group: RankGroup, tensor: Tensor, peer: int, tag: int, what: str) -> Wait:
    """Start sending a contiguous tensor; it must stay as it is until the wait is over."""
    work = group.send(_bytes(tensor), peer, tag)
    return Wait(work, group.rank, peer, f"{what}: to take {tensor.nbytes} bytes")


def receive(group: RankGroup, tensor: Tensor, peer: int, tag: int, what: str) -> Wait:
    """Start receiving into a contiguous tensor."""
    work = group.receive(_bytes(tensor), peer, tag)
    return Wait(work, group.rank, peer, f"{what}: to send {tensor.nbytes} bytes")


def wait_all(waits: Sequence[Wait]) -> None:
    """Until all messages are through; raises PeerError, saying who waited for whom."""
    for wait in waits:
        try:
            wait.work.wait()
        except RuntimeError as error:
            raise PeerError(
                f"rank {wait.rank} waited for rank {wait.peer} in vain ({wait.what}): "
                f"{gloo_reason(error)}"
            ) from error


def _bytes(tensor: Tensor) -> Tensor:
    """The tensor's bytes: gloo carries uint8 whatever the type."""
    return tensor.view(torch.uint8)

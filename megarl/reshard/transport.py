"""Messages of one round between ranks, and what is done beside them.

`Wire` is what the executor asks for. `GlooWire` carries host memory over a group of ranks, and
works beside it on a thread; `transport_nccl.py` carries GPU memory, and works beside on a stream.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from megarl.errors import PeerError
from megarl.mesh.group import RankGroup, gloo_reason


@dataclass(frozen=True, slots=True)
class Parcel:
    """A contiguous tensor that goes to a peer or comes from it; it stays as it is meanwhile.

    Both ends list their parcels in the same order.
    """

    tensor: Tensor
    peer: int
    tag: int


class Wire(Protocol):
    """Carries rounds, one after the other; `work` is what moves regions."""

    def moving(self) -> AbstractContextManager[Any]:
        """Around a whole sync: what is moved inside comes after what was done before."""

    def start(self, receives: Sequence[Parcel], sends: Sequence[Parcel], what: str) -> Any:
        """Put a round on the wire, behind all that was moved so far; `what` names it in errors."""

    def wait(self, exchange: Any) -> None:
        """What is moved from here on comes after that round."""

    def beside(self, exchange: Any, work: Callable[[], None]) -> None:
        """Work while a round is on the wire, then `wait` for it."""

    def finish(self) -> None:
        """Until everything has happened.

        Here or in `wait`: PeerError, saying who waited for whom, for a peer that did not answer
        within the group's time-out.
        """


@dataclass(frozen=True, slots=True)
class Wait:
    """One message under way."""

    work: dist.Work
    rank: int
    peer: int
    what: str


class GlooWire:
    """See Wire."""

    def __init__(self, group: RankGroup) -> None:
        self._group = group
        self._worker = ThreadPoolExecutor(1, "megarl-reshard")

    def moving(self) -> AbstractContextManager[Any]:
        """See Wire."""
        return nullcontext()

    def start(self, receives: Sequence[Parcel], sends: Sequence[Parcel], what: str) -> list[Wait]:
        """See Wire; receives are posted first."""
        waits = [receive(self._group, p.tensor, p.peer, p.tag, what) for p in receives]
        return waits + [send(self._group, p.tensor, p.peer, p.tag, what) for p in sends]

    def wait(self, exchange: Sequence[Wait]) -> None:
        """See Wire."""
        wait_all(exchange)

    def beside(self, exchange: Sequence[Wait], work: Callable[[], None]) -> None:
        """See Wire."""
        done = self._worker.submit(work)
        try:
            wait_all(exchange)
        finally:
            done.result()

    def finish(self) -> None:
        """See Wire."""


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

"""How the ranks of a transfer find each other: through a store that trainer rank 0 hosts.

Every attempt has keys of its own, so that a retry never meets what an earlier one left.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta

import torch.distributed as dist

from megarl.errors import PeerError
from megarl.mesh.group import RankGroup, gloo_reason
from megarl.transfer.spec import TransferSpec

POLL_S = 0.02
FAILED = "failed"


def open_store(host: str, port: int, timeout_s: float, *, hosts: bool) -> dist.TCPStore:
    """The trainer's store; `hosts`: this process is trainer rank 0 (port 0: a free one).

    Raises PeerError, with the address, where it cannot be reached.
    """
    timeout = timedelta(seconds=timeout_s)
    try:
        return dist.TCPStore(host, port, is_master=hosts, timeout=timeout, wait_for_workers=False)
    except RuntimeError as error:
        raise PeerError(
            f"weight transfer: no answer from the trainer's store at {host}:{port}: {error}; "
            "the address must be reachable from the servers (argument `host` of WeightTransfer)"
        ) from error


class Rendezvous:
    """One rank's view of one attempt."""

    def __init__(self, store: dist.Store, attempt: int, rank: int, spec: TransferSpec) -> None:
        self._store = dist.PrefixStore(f"attempt/{attempt}", store)
        self._rank, self._spec = rank, spec

    def join(self, failed: Callable[[], str]) -> RankGroup:
        """The group of all ranks.

        failed: asked while others are awaited; a text ends the wait. Raises PeerError, naming who
        did not come within the time-out, or what a rank that failed meanwhile had to say.
        """
        spec = self._spec
        everybody = [f"here/{rank}" for rank in range(spec.size)]
        self._store.set(everybody[self._rank], "")
        deadline = time.monotonic() + spec.timeout_s
        while True:
            if why := failed() or self._failure():
                raise PeerError(why)
            if self._store.check(everybody):
                break
            if time.monotonic() > deadline:
                self._raise_missing()
            time.sleep(POLL_S)
        timeout = timedelta(seconds=spec.timeout_s)
        try:
            group_store = dist.PrefixStore("group", self._store)
            return RankGroup(group_store, self._rank, spec.size, timeout)
        except RuntimeError as error:
            reason = gloo_reason(error)
            raise PeerError(f"weight transfer: the group could not be made: {reason}") from error

    def report(self, error: BaseException) -> None:
        """Leave word of this rank's failure, for those who join or wait to."""
        text = f"{self._spec.who(self._rank)} failed: {type(error).__name__}: {error}"
        with suppress(RuntimeError):  # the store is gone with the trainer, which `error` is about
            self._store.set(FAILED, text)

    def _failure(self) -> str:
        return self._store.get(FAILED).decode() if self._store.check([FAILED]) else ""

    def _raise_missing(self) -> None:
        ranks = range(self._spec.size)
        missing = [self._spec.who(r) for r in ranks if not self._store.check([f"here/{r}"])]
        raise PeerError(
            f"weight transfer: {self._spec.who(self._rank)} waited {self._spec.timeout_s:g} s for "
            f"{', '.join(missing)} to join"
        )

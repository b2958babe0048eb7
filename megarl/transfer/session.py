"""A group of trainer ranks and workers with one plan, the same class on both sides.

A session that fails is over: its connections are closed, so that no rank waits for one that will
not come, and the next update begins with a new one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch.distributed as dist
from torch import Tensor

from megarl.errors import PeerError, VerificationError
from megarl.layout import Plan
from megarl.mesh.group import RankGroup, gloo_reason
from megarl.reshard.checks import check_same_plan
from megarl.reshard.executor import Resharder, SyncReport
from megarl.transfer.rendezvous import Rendezvous
from megarl.transfer.spec import TransferSpec


def _nothing() -> str:
    return ""


class Session:
    """This rank's part of the transfer, from the join to the first failure."""

    def __init__(
        self,
        spec: TransferSpec,
        store: dist.Store,
        attempt: int,
        rank: int,
        failed: Callable[[], str] = _nothing,
    ) -> None:
        """All ranks make it together; see `Rendezvous.join`.

        Raises PlanError where ranks made different plans.
        """
        self.spec, self.attempt, self.rank = spec, attempt, rank
        self._group: RankGroup | None = None
        self._resharder: Resharder | None = None
        self._rendezvous = Rendezvous(store, attempt, rank, spec)
        with self.guarded():
            self._group = self._rendezvous.join(failed)
            self.plan: Plan = spec.plan(self._group)
            check_same_plan(self._group.all_gather(self._facts()))

    def move(self, sources: Mapping[str, Tensor], destinations: Mapping[str, Tensor]) -> SyncReport:
        """Move everything once and verify every region; all ranks call it together.

        Tensors must stay where they are between calls. Raises VerificationError on every rank when
        one of them holds another content than was sent to it, and PeerError where a peer vanished
        or took longer than the time-out.
        """
        with self.guarded():
            assert self._group is not None
            if self._resharder is None:
                self._resharder = Resharder(
                    self._group,
                    self.plan,
                    sources,
                    destinations,
                    wire_dtype=self.spec.wire_dtype,
                    buffer_bytes=self.spec.buffer_bytes,
                    overlap=self.spec.overlap,
                )
            report, problem = None, None
            try:
                report = self._resharder.run(verify=True)
            except VerificationError as error:
                problem = str(error)
            for found in self._group.all_gather(problem):
                if found is not None:
                    raise VerificationError(found)
            assert report is not None
            return report

    def close(self) -> None:
        """End it; whoever still waits for this rank hears of it at once. From any thread."""
        if self._group is not None:
            self._group.abort()

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """A failure inside ends the session; gloo's own are peers that did not answer."""
        try:
            yield
        except Exception as error:
            known: Exception = error
            if isinstance(error, RuntimeError):
                reason = gloo_reason(error)
                known = PeerError(f"weight transfer: {self.spec.who(self.rank)}: {reason}")
            self._rendezvous.report(known)
            self.close()
            if known is error:
                raise
            raise known from error

    def _facts(self) -> str:
        """What the plan comes from, in numbers: equal on all ranks, unless versions differ."""
        held, needed = (
            sum(piece.box.numel for placement in side.values() for piece in placement)
            for side in (self.spec.sources(), self.spec.destinations())
        )
        return f"{self.plan.digest()[:16]} ({held} elements held, {needed} needed)"

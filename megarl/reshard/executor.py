"""Carries out one rank's part of a plan: copy what is here, pack | wire | unpack the rest.

Steps of `run`: 1. regions that the rank holds itself, through the same pack and unpack; 2. rounds,
in which the rank exchanges at most one bucket with each peer in each direction; 3. digests: the
sender's of each region against the receiver's, taken from the destination after it was written.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from megarl.errors import VerificationError
from megarl.layout import Plan, Transfer
from megarl.mesh.universe import Universe
from megarl.reshard.buckets import Bucket, make_buckets
from megarl.reshard.regions import RegionSet
from megarl.runtime.device import threads_per_process

DATA_TAG, DIGEST_TAG = 71, 72


@dataclass(frozen=True, slots=True)
class SyncReport:
    """What one rank moved in one sync; bytes are those of the wire type."""

    seconds: float
    bytes_received: int
    bytes_sent: int
    bytes_local: int
    lower_bound_bytes: int
    """Needed here minus held here: no plan receives less."""
    messages: int
    regions_verified: int


@dataclass(frozen=True, slots=True)
class _Lane:
    """A bucket with its side's regions."""

    bucket: Bucket
    regions: RegionSet


class Resharder:
    """A plan bound to live tensors; build once, run after every update.

    Caches per bucket: the region tables. They hold addresses, so parameters must stay where they
    are; vLLM's and Megatron's do.
    """

    def __init__(
        self,
        universe: Universe,
        plan: Plan,
        sources: Mapping[str, Tensor],
        destinations: Mapping[str, Tensor],
        *,
        wire_dtype: torch.dtype,
        bucket_bytes: int,
    ) -> None:
        self._universe = universe
        self._wire = wire_dtype
        self._itemsize = wire_dtype.itemsize
        elements = max(bucket_bytes // self._itemsize, 1)
        rank, threads = universe.rank, threads_per_process()
        self.plan = plan
        self._sends = _lanes(plan.sends(rank), "dst", sources, "src", elements, threads)
        self._receives = _lanes(plan.receives(rank), "src", destinations, "dst", elements, threads)
        local = make_buckets(plan.local(rank), rank, elements)
        self._local = [
            (
                _Lane(bucket, RegionSet(bucket.transfers, sources, "src", threads)),
                _Lane(bucket, RegionSet(bucket.transfers, destinations, "dst", threads)),
            )
            for bucket in local
        ]
        bounds = dict(plan.lower_bounds)
        self._lower_bound = bounds.get(rank, 0) * self._itemsize
        counts = [len(lanes) for lanes in (*self._sends.values(), *self._receives.values())]
        self._rounds = max(counts, default=0)
        self._wrong = ""

    def run(self, verify: bool = True) -> SyncReport:
        """Move everything once; all ranks of the plan call it together.

        Raises VerificationError, naming tensor, box and ranks, when `verify` finds a region whose
        digest is not its sender's; it does so at the end, so that no peer waits for a message.
        """
        start = time.perf_counter()
        self._wrong = ""
        verified = 0
        sent = received = local = messages = 0
        for source, target in self._local:
            local += self._copy(source, target, verify)
            verified += len(source.bucket.transfers) if verify else 0
        for index in range(self._rounds):
            out = [lanes[index] for lanes in self._sends.values() if index < len(lanes)]
            into = [lanes[index] for lanes in self._receives.values() if index < len(lanes)]
            sent_now, received_now = self._exchange(out, into, verify)
            sent, received = sent + sent_now, received + received_now
            messages += len(out)
            verified += sum(len(lane.bucket.transfers) for lane in into) if verify else 0
        if self._wrong:
            raise VerificationError(self._wrong)
        return SyncReport(
            time.perf_counter() - start,
            received,
            sent,
            local,
            self._lower_bound,
            messages,
            verified,
        )

    def _copy(self, source: _Lane, target: _Lane, verify: bool) -> int:
        buffer = torch.empty(source.regions.numel, dtype=self._wire)
        source.regions.pack(buffer)
        target.regions.unpack(buffer)
        if verify:
            self._compare(target, source.regions.digest(self._wire), self._universe.rank)
        return buffer.nbytes

    def _exchange(self, out: list[_Lane], into: list[_Lane], verify: bool) -> tuple[int, int]:
        """One round; returns the bytes handed to the transport and taken from it."""
        universe = self._universe
        arriving = [torch.empty(lane.regions.numel, dtype=self._wire) for lane in into]
        works = [
            universe.receive(_wire_view(buffer), lane.bucket.peer, DATA_TAG)
            for buffer, lane in zip(arriving, into, strict=True)
        ]
        leaving = []
        for lane in out:
            buffer = torch.empty(lane.regions.numel, dtype=self._wire)
            lane.regions.pack(buffer)
            leaving.append(buffer)
            works.append(universe.send(_wire_view(buffer), lane.bucket.peer, DATA_TAG))
        for work in works:
            work.wait()
        for buffer, lane in zip(arriving, into, strict=True):
            lane.regions.unpack(buffer)
        if verify:
            self._verify(out, into)
        return sum(b.nbytes for b in leaving), sum(b.nbytes for b in arriving)

    def _verify(self, out: list[_Lane], into: list[_Lane]) -> None:
        universe = self._universe
        expected = [torch.empty(len(lane.bucket.transfers), dtype=torch.int64) for lane in into]
        works = [
            universe.receive(buffer, lane.bucket.peer, DIGEST_TAG)
            for buffer, lane in zip(expected, into, strict=True)
        ]
        digests = [torch.from_numpy(lane.regions.digest(self._wire)) for lane in out]
        works += [
            universe.send(digest, lane.bucket.peer, DIGEST_TAG)
            for digest, lane in zip(digests, out, strict=True)
        ]
        for work in works:
            work.wait()
        for digest, lane in zip(expected, into, strict=True):
            self._compare(lane, digest.numpy(), lane.bucket.peer)

    def _compare(self, lane: _Lane, expected: np.ndarray, source: int) -> None:
        wrong = np.nonzero(lane.regions.digest(self._wire) != expected)[0]
        if len(wrong) and not self._wrong:
            transfer = lane.bucket.transfers[int(wrong[0])]
            self._wrong = (
                f"weight sync: {transfer.tensor} {transfer.box} did not arrive: rank {source} sent "
                f"another content than rank {self._universe.rank} holds in {transfer.dst_buffer} "
                f"({len(wrong)} of {len(expected)} regions of this bucket differ)"
            )


def _lanes(
    transfers: Iterable[Transfer],
    peer_side: str,
    tensors: Mapping[str, Tensor],
    side: str,
    elements: int,
    threads: int,
) -> dict[int, list[_Lane]]:
    by_peer: defaultdict[int, list[Transfer]] = defaultdict(list)
    for transfer in transfers:
        by_peer[getattr(transfer, peer_side)].append(transfer)
    return {
        peer: [
            _Lane(bucket, RegionSet(bucket.transfers, tensors, side, threads))
            for bucket in make_buckets(by_peer[peer], peer, elements)
        ]
        for peer in sorted(by_peer)
    }


def _wire_view(buffer: Tensor) -> Tensor:
    """The buffer's bytes: gloo carries uint8 whatever the type."""
    return buffer.view(torch.uint8)

"""Carries out one rank's part of a plan: copies what is here, packs | wires | unpacks the rest.

Rounds go through two send and two receive buffers of fixed size; large regions without gaps go
straight from and to the parameters. While round i is on the wire, a thread unpacks round i - 1 and
packs round i + 1. A digest of every region, taken from the source while it is packed, travels
beside the round; the destination's is taken, and compared, when everything has been written.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from megarl.errors import VerificationError
from megarl.layout import Plan, Transfer
from megarl.mesh.group import RankGroup
from megarl.reshard.regions import RegionSet, copy_regions
from megarl.reshard.rounds import ALONE_ELEMENTS, Message, Vector, make_rounds
from megarl.reshard.transport import Wait, receive, send, wait_all
from megarl.runtime.device import threads_per_process

DATA_TAG, DIGEST_TAG = 71, 72
NUM_BUFFERS = 4
"""Two to send from, two to receive into."""


@dataclass(frozen=True, slots=True)
class SyncReport:
    """What one rank moved in one sync; bytes are those of the wire type."""

    seconds: float
    bytes_received: int
    bytes_sent: int
    bytes_local: int
    bytes_from_other_nodes: int
    """Of bytes_received."""
    bytes_buffered: int
    """Of bytes sent and received, those that were packed or unpacked."""
    lower_bound_bytes: int
    """Needed here minus held here: no plan receives less."""
    messages: int
    rounds: int
    regions_verified: int
    bytes_aliased: int
    """In place already: vLLM's parameter is a view of Megatron's."""
    buffer_bytes: int
    """Memory of all buffers: what the sync needs beside the weights."""
    bytes_indirect: int = 0
    """Received, beside all of the above, for tensors that only the engine's loaders can place."""


@dataclass(frozen=True, slots=True)
class _Lane:
    """A message, its regions, and where it lies: in the round's buffer, or in a parameter."""

    message: Message
    regions: RegionSet
    start: int
    """Elements."""
    direct: Tensor | None

    @property
    def buffered(self) -> int:
        """Elements that the message takes of the buffer."""
        return self.regions.numel if self.direct is None else 0

    def of(self, buffer: Tensor) -> Tensor:
        """The message's contiguous memory."""
        if self.direct is not None:
            return self.direct
        return buffer[self.start : self.start + self.regions.numel]


@dataclass(slots=True)
class _Step:
    """One round's lanes, and the digests that belong to them while it is under way."""

    sends: tuple[_Lane, ...]
    receives: tuple[_Lane, ...]
    sent_digests: Sequence[Vector] = ()
    expected: Sequence[Vector] = ()


class Resharder:
    """A plan bound to live tensors; build once, run after every update.

    Caches the rounds and their region tables. They hold addresses, so parameters must stay where
    they are; vLLM's and Megatron's do.
    """

    def __init__(
        self,
        group: RankGroup,
        plan: Plan,
        sources: Mapping[str, Tensor],
        destinations: Mapping[str, Tensor],
        *,
        wire_dtype: torch.dtype,
        buffer_bytes: int,
        overlap: bool = True,
        in_place: Collection[str] = (),
        alone_elements: int = ALONE_ELEMENTS,
    ) -> None:
        """buffer_bytes: of all buffers together; all ranks build it together, with the same sizes.

        in_place: destinations that are views of sources already, and are left as they are.

        overlap: pack and unpack while another round is on the wire, or one after the other.
        """
        self._group, self.plan, self._wire = group, plan, wire_dtype
        self._threads, rank = threads_per_process(), group.rank
        self._sources, self._destinations = sources, destinations
        capacity = buffer_bytes // NUM_BUFFERS // wire_dtype.itemsize
        self._steps = [
            _Step(self._lanes(each.sends, "src"), self._lanes(each.receives, "dst"))
            for each in make_rounds(plan, rank, capacity, self._agree, alone_elements)
        ]
        self._local = [
            self._lane_pair(
                [t for t in plan.local(rank) if t.relay == relay and t.dst_buffer not in in_place]
            )
            for relay in (False, True)
        ]
        self._aliased = sum(destinations[name].nbytes for name in in_place)
        self._out = self._make_buffers([step.sends for step in self._steps])
        self._into = self._make_buffers([step.receives for step in self._steps])
        self._worker = ThreadPoolExecutor(1, "megarl-reshard") if overlap else None
        nodes = group.node_of
        itemsize = wire_dtype.itemsize
        self._far = sum(
            t.box.numel * itemsize for t in plan.receives(rank) if nodes[t.src] != nodes[rank]
        )
        self._bound = dict(plan.lower_bounds).get(rank, 0) * itemsize
        self._local_digests = [np.zeros(0, np.int64)] * 2

    def run(self, verify: bool = True) -> SyncReport:
        """Move everything once; all ranks of the plan call it together.

        Raises VerificationError, naming tensor, box and ranks, when `verify` finds a region whose
        digest is not its sender's; it does so at the end, so that no peer waits for a message.
        Raises PeerError where a peer vanished, or took longer than the group's time-out.
        """
        start = time.perf_counter()
        if self._worker is None:
            self._run_in_sequence(verify)
        else:
            self._run_overlapped(self._worker, verify)
        if verify:
            self._verify()
        return self._report(time.perf_counter() - start, verify)

    def _run_in_sequence(self, verify: bool) -> None:
        self._copy(0, verify)
        for index in range(len(self._steps)):
            self._pack(index, verify)
            wait_all(self._start(index, verify))
            self._unpack(index)
        self._copy(1, verify)

    def _run_overlapped(self, worker: ThreadPoolExecutor, verify: bool) -> None:
        self._pack(0, verify)
        for index in range(len(self._steps)):
            on_the_wire = self._start(index, verify)
            beside = worker.submit(self._beside_the_wire, index, verify)
            try:
                wait_all(on_the_wire)
            finally:
                beside.result()
        self._unpack(len(self._steps) - 1)
        self._copy(1, verify)

    def _beside_the_wire(self, index: int, verify: bool) -> None:
        if index == 0:
            self._copy(0, verify)
        self._unpack(index - 1)
        self._pack(index + 1, verify)

    def _pack(self, index: int, verify: bool) -> None:
        if not 0 <= index < len(self._steps):
            return
        step, buffer = self._steps[index], self._out[index % 2]
        step.sent_digests = [self._pack_lane(lane, buffer, verify) for lane in step.sends]

    def _pack_lane(self, lane: _Lane, buffer: Tensor, verify: bool) -> Vector:
        if lane.direct is None:
            return lane.regions.pack(lane.of(buffer), verify)
        return lane.regions.digest(self._wire) if verify else np.zeros(1, np.int64)

    def _start(self, index: int, verify: bool) -> list[Wait]:
        """Put a round on the wire; receives are posted first."""
        step, group = self._steps[index], self._group
        what = f"weight sync, round {index + 1} of {len(self._steps)}"
        out, into = self._out[index % 2], self._into[index % 2]
        waits = [
            receive(group, lane.of(into), lane.message.peer, DATA_TAG, what)
            for lane in step.receives
        ]
        if verify:
            step.expected = [
                np.empty(len(lane.message.transfers), np.int64) for lane in step.receives
            ]
            waits += [
                receive(group, torch.from_numpy(digest), lane.message.peer, DIGEST_TAG, what)
                for lane, digest in zip(step.receives, step.expected, strict=True)
            ]
        for lane, digest in zip(step.sends, step.sent_digests, strict=True):
            waits.append(send(group, lane.of(out), lane.message.peer, DATA_TAG, what))
            if verify:
                checks = torch.from_numpy(digest)
                waits.append(send(group, checks, lane.message.peer, DIGEST_TAG, what))
        return waits

    def _unpack(self, index: int) -> None:
        if not 0 <= index < len(self._steps):
            return
        step, buffer = self._steps[index], self._into[index % 2]
        for lane in step.receives:
            if lane.direct is None:
                lane.regions.unpack(lane.of(buffer))

    def _copy(self, which: int, verify: bool) -> None:
        """Local regions: from the sources, or (which = 1) between destinations, at the end."""
        source, target, _ = self._local[which]
        self._local_digests[which] = copy_regions(source, target, self._wire, verify)

    def _verify(self) -> None:
        """Every region as it is now that all are written, against what its source was."""
        checks = [
            (lane.regions, expected, lane.message)
            for step in self._steps
            for lane, expected in zip(step.receives, step.expected, strict=True)
        ]
        for (_, target, message), digests in zip(self._local, self._local_digests, strict=True):
            checks.append((target, digests, message))
        for regions, expected, message in checks:
            wrong = np.nonzero(regions.digest(self._wire) != expected)[0]
            if len(wrong):
                transfer = message.transfers[int(wrong[0])]
                raise VerificationError(
                    f"weight sync: {transfer.tensor} {transfer.box} did not arrive: rank "
                    f"{message.peer} sent another content than rank {self._group.rank} holds "
                    f"in {transfer.dst_buffer} ({len(wrong)} of {len(expected)} regions of this "
                    "message differ)"
                )

    def _lanes(self, messages: Sequence[Message], side: str) -> tuple[_Lane, ...]:
        lanes, start = [], 0
        for message in messages:
            regions = self._regions(message.transfers, side)
            lanes.append(_Lane(message, regions, start, regions.direct(self._wire)))
            start += lanes[-1].buffered
        return tuple(lanes)

    def _regions(self, transfers: Sequence[Transfer], side: str) -> RegionSet:
        return RegionSet(transfers, self._sources, self._destinations, side, self._threads)

    def _lane_pair(self, transfers: Sequence[Transfer]) -> tuple[RegionSet, RegionSet, Message]:
        message = Message(self._group.rank, tuple(transfers))
        return self._regions(transfers, "src"), self._regions(transfers, "dst"), message

    def _make_buffers(self, rounds: Sequence[tuple[_Lane, ...]]) -> tuple[Tensor, ...]:
        """Two buffers, no larger than the largest round needs."""
        needed = max((sum(lane.buffered for lane in lanes) for lanes in rounds), default=0)
        return tuple(torch.empty(needed, dtype=self._wire) for _ in range(2))

    def _agree(self, vector: Vector, *, largest: bool) -> Vector:
        op = torch.distributed.ReduceOp.MAX if largest else torch.distributed.ReduceOp.MIN
        return self._group.all_reduce(torch.from_numpy(vector.copy()), op).numpy()

    def _report(self, seconds: float, verify: bool) -> SyncReport:
        sends = [lane for step in self._steps for lane in step.sends]
        receives = [lane for step in self._steps for lane in step.receives]
        itemsize = self._wire.itemsize
        local = [message for _, _, message in self._local]
        arrived = [lane.message for lane in receives] + local
        return SyncReport(
            seconds=seconds,
            bytes_received=sum(lane.regions.numel for lane in receives) * itemsize,
            bytes_sent=sum(lane.regions.numel for lane in sends) * itemsize,
            bytes_local=sum(message.numel for message in local) * itemsize,
            bytes_from_other_nodes=self._far,
            bytes_buffered=sum(lane.buffered for lane in (*sends, *receives)) * itemsize,
            lower_bound_bytes=self._bound,
            messages=len(sends),
            rounds=len(self._steps),
            bytes_aliased=self._aliased,
            regions_verified=sum(len(m.transfers) for m in arrived) if verify else 0,
            buffer_bytes=sum(buffer.nbytes for buffer in (*self._out, *self._into)),
        )

"""Carries out one rank's part of a plan: copies what is here, packs | wires | unpacks the rest.

Rounds go through two send and two receive buffers of fixed size; large regions without gaps go
straight from and to the parameters. While round i is on the wire, round i - 1 is unpacked and round
i + 1 packed: by a thread on a CPU, on a stream on a GPU (`Mover` and `Wire` know which). A digest
of every region, taken from the source while it is packed, travels beside the round; the
destination's is taken, and compared, when everything has been written.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from megarl.errors import VerificationError
from megarl.layout import Plan, Transfer
from megarl.mesh.group import RankGroup
from megarl.reshard.mover import HostMover, Mover
from megarl.reshard.mover_cuda import CudaMover
from megarl.reshard.regions import RegionSet, copy_regions
from megarl.reshard.rounds import ALONE_ELEMENTS, Message, Vector, make_rounds, portions
from megarl.reshard.transport import GlooWire, Parcel, Wire
from megarl.reshard.transport_nccl import NcclWire
from megarl.runtime.device import device, threads_per_process

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
    digests: slice
    """Where its digests are kept."""

    @property
    def buffered(self) -> int:
        """Elements that the message takes of the buffer."""
        return self.regions.numel if self.direct is None else 0

    def of(self, buffer: Tensor) -> Tensor:
        """The message's contiguous memory."""
        if self.direct is not None:
            return self.direct
        return buffer[self.start : self.start + self.regions.numel]


@dataclass(frozen=True, slots=True)
class _Step:
    """One round's lanes."""

    sends: tuple[_Lane, ...]
    receives: tuple[_Lane, ...]


@dataclass(frozen=True, slots=True)
class _Local:
    """What is copied here, as a lane between this rank and itself."""

    message: Message
    source: RegionSet
    target: RegionSet
    digests: slice


class RoundBuffers:
    """Two buffers to send from and two to receive into; several executors may take turns."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.out, self.into = _two(0, dtype), _two(0, dtype)

    def reserve(self, out: int, into: int) -> None:
        """Make them as large as rounds of so many elements need; what was in them is lost."""
        if out > self.out[0].numel():
            self.out = _two(out, self.dtype)
        if into > self.into[0].numel():
            self.into = _two(into, self.dtype)

    @property
    def nbytes(self) -> int:
        """Of all four."""
        return sum(buffer.nbytes for buffer in (*self.out, *self.into))


def _two(numel: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    first, second = (torch.empty(numel, dtype=dtype, device=device()) for _ in range(2))
    return first, second


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
        buffers: RoundBuffers | None = None,
        alone_elements: int = ALONE_ELEMENTS,
    ) -> None:
        """buffer_bytes: of all buffers together; all ranks build it together, with the same sizes.

        overlap: pack and unpack while another round is on the wire, or one after the other.
        in_place: destinations that are views of sources already, and are left as they are.
        buffers: those of another executor, which runs at other times.
        """
        self._group, self.plan, self._dtype = group, plan, wire_dtype
        self._overlap, rank = overlap, group.rank
        self._sources, self._destinations = sources, destinations
        self._mover, self._wire = _parts(group)
        capacity = buffer_bytes // NUM_BUFFERS // wire_dtype.itemsize
        self._counts = {"src": 0, "dst": 0}
        self._steps = [
            _Step(self._lanes(each.sends, "src"), self._lanes(each.receives, "dst"))
            for each in make_rounds(plan, rank, capacity, self._agree, alone_elements)
        ]
        moved = [t for t in plan.local(rank) if t.dst_buffer not in in_place]
        self._local = [
            self._locals_of([t for t in moved if t.relay == relay], capacity)
            for relay in (False, True)
        ]
        self._aliased = sum(destinations[name].nbytes for name in in_place)
        self.buffers = buffers or RoundBuffers(wire_dtype)
        self.buffers.reserve(
            max(_largest([step.sends for step in self._steps]), self._scratch_needed()),
            _largest([step.receives for step in self._steps]),
        )
        self._sent = self._empty(self._counts["src"], torch.int64)
        # What each region's digest should be, and what it is.
        self._expected, self._found = self._empty(2 * self._counts["dst"], torch.int64).chunk(2)
        nodes = group.node_of
        itemsize = wire_dtype.itemsize
        self._far = sum(
            t.box.numel * itemsize for t in plan.receives(rank) if nodes[t.src] != nodes[rank]
        )
        self._bound = dict(plan.lower_bounds).get(rank, 0) * itemsize

    def run(self, verify: bool = True) -> SyncReport:
        """Move everything once; all ranks of the plan call it together.

        Raises VerificationError, naming tensor, box and ranks, when `verify` finds a region whose
        digest is not its sender's; it does so at the end, so that no peer waits for a message.
        Raises PeerError where a peer vanished, or took longer than the group's time-out.
        """
        start = time.perf_counter()
        with self._wire.moving():
            if self._overlap:
                self._run_overlapped(verify)
            else:
                self._run_in_sequence(verify)
            if verify:
                self._digest_all()
        self._wire.finish()
        if verify:
            self._compare()
        return self._report(time.perf_counter() - start, verify)

    def _run_in_sequence(self, verify: bool) -> None:
        self._copy(0, verify)
        for index in range(len(self._steps)):
            self._pack(index, verify)
            self._wire.wait(self._start(index, verify))
            self._unpack(index)
        self._copy(1, verify)

    def _run_overlapped(self, verify: bool) -> None:
        self._pack(0, verify)
        for index in range(len(self._steps)):
            exchange = self._start(index, verify)
            self._wire.beside(exchange, partial(self._beside_the_wire, index, verify))
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
        buffer = self.buffers.out[index % 2]
        for lane in self._steps[index].sends:
            digests = self._sent[lane.digests] if verify else None
            if lane.direct is None:
                lane.regions.pack(lane.of(buffer), digests)
            elif digests is not None:
                lane.regions.digest(self._dtype, digests)

    def _start(self, index: int, verify: bool) -> Any:
        """Put a round on the wire: every message, and its digests behind it."""
        step = self._steps[index]

        def parcels(lanes: Sequence[_Lane], buffer: Tensor, digests: Tensor) -> list[Parcel]:
            found = []
            for lane in lanes:
                found.append(Parcel(lane.of(buffer), lane.message.peer, DATA_TAG))
                if verify:
                    found.append(Parcel(digests[lane.digests], lane.message.peer, DIGEST_TAG))
            return found

        return self._wire.start(
            parcels(step.receives, self.buffers.into[index % 2], self._expected),
            parcels(step.sends, self.buffers.out[index % 2], self._sent),
            f"weight sync, round {index + 1} of {len(self._steps)}",
        )

    def _unpack(self, index: int) -> None:
        if not 0 <= index < len(self._steps):
            return
        buffer = self.buffers.into[index % 2]
        for lane in self._steps[index].receives:
            if lane.direct is None:
                lane.regions.unpack(lane.of(buffer))

    def _copy(self, which: int, verify: bool) -> None:
        """Local regions: from the sources, or (which = 1) between destinations, at the end."""
        scratch = self.buffers.out[1]  # nothing is packed into it before, and all is sent after
        for local in self._local[which]:
            digests = self._expected[local.digests] if verify else None
            copy_regions(local.source, local.target, self._dtype, digests, scratch)

    def _arrived(self) -> Iterator[tuple[Message, RegionSet, slice]]:
        """What is written here, with the place of its digests."""
        for step in self._steps:
            for lane in step.receives:
                yield lane.message, lane.regions, lane.digests
        for local in itertools.chain(*self._local):
            yield local.message, local.target, local.digests

    def _digest_all(self) -> None:
        """Every region as it is now that all are written."""
        for _, regions, digests in self._arrived():
            regions.digest(self._dtype, self._found[digests])

    def _compare(self) -> None:
        """Every region against what its source was; the digests leave the device once."""
        differs = (self._found != self._expected).cpu()
        for message, _, digests in self._arrived():
            wrong = differs[digests].nonzero().flatten().tolist()
            if wrong:
                transfer = message.transfers[wrong[0]]
                raise VerificationError(
                    f"weight sync: {transfer.tensor} {transfer.box} did not arrive: rank "
                    f"{message.peer} sent another content than rank {self._group.rank} holds "
                    f"in {transfer.dst_buffer} ({len(wrong)} of {len(message.transfers)} regions "
                    "of this message differ)"
                )

    def _lanes(self, messages: Sequence[Message], side: str) -> tuple[_Lane, ...]:
        lanes, start = [], 0
        for message in messages:
            regions = self._regions(message.transfers, side)
            direct = regions.direct(self._dtype)
            lanes.append(_Lane(message, regions, start, direct, self._take(message, side)))
            start += lanes[-1].buffered
        return tuple(lanes)

    def _locals_of(self, transfers: Sequence[Transfer], capacity: int) -> list[_Local]:
        """At once what is of one type, and of the wire's where it goes to; the rest by portions."""
        direct: dict[torch.dtype, list[Transfer]] = {}
        rest = []
        for transfer in transfers:
            given = self._destinations if transfer.relay else self._sources
            source = given.get(transfer.src_buffer)
            target = self._destinations.get(transfer.dst_buffer)
            if source is None or target is None or target.dtype != self._dtype:
                rest.append(transfer)
            else:
                direct.setdefault(source.dtype, []).append(transfer)
        return [self._local_of(some) for some in (*direct.values(), *portions(rest, capacity))]

    def _local_of(self, transfers: Sequence[Transfer]) -> _Local:
        message = Message(self._group.rank, tuple(transfers))
        source, target = self._regions(transfers, "src"), self._regions(transfers, "dst")
        return _Local(message, source, target, self._take(message, "dst"))

    def _scratch_needed(self) -> int:
        """Elements of the largest local copy that changes types on the way."""
        return max(
            (
                each.source.numel
                for each in itertools.chain(*self._local)
                if not each.source.copies_to(each.target, self._dtype)
            ),
            default=0,
        )

    def _regions(self, transfers: Sequence[Transfer], side: str) -> RegionSet:
        return RegionSet(transfers, self._sources, self._destinations, side, self._mover)

    def _take(self, message: Message, side: str) -> slice:
        """Room for a message's digests."""
        start = self._counts[side]
        self._counts[side] += len(message.transfers)
        return slice(start, self._counts[side])

    def _empty(self, numel: int, dtype: torch.dtype) -> Tensor:
        return torch.empty(numel, dtype=dtype, device=self._mover.device)

    def _agree(self, vector: Vector, *, largest: bool) -> Vector:
        op = torch.distributed.ReduceOp.MAX if largest else torch.distributed.ReduceOp.MIN
        return self._group.all_reduce(torch.from_numpy(vector.copy()), op).numpy()

    def _report(self, seconds: float, verify: bool) -> SyncReport:
        sends = [lane for step in self._steps for lane in step.sends]
        receives = [lane for step in self._steps for lane in step.receives]
        itemsize = self._dtype.itemsize
        local = sum(each.message.numel for each in itertools.chain(*self._local))
        return SyncReport(
            seconds=seconds,
            bytes_received=sum(lane.regions.numel for lane in receives) * itemsize,
            bytes_sent=sum(lane.regions.numel for lane in sends) * itemsize,
            bytes_local=local * itemsize,
            bytes_from_other_nodes=self._far,
            bytes_buffered=sum(lane.buffered for lane in (*sends, *receives)) * itemsize,
            lower_bound_bytes=self._bound,
            messages=len(sends),
            rounds=len(self._steps),
            bytes_aliased=self._aliased,
            regions_verified=self._counts["dst"] if verify else 0,
            buffer_bytes=self.buffers.nbytes,
        )


def _parts(group: RankGroup) -> tuple[Mover, Wire]:
    """What moves regions and carries messages where this process computes."""
    here = device()
    if here.type == "cpu":
        return HostMover(threads_per_process()), GlooWire(group)
    return CudaMover(here), NcclWire(group, here)


def _largest(rounds: Sequence[tuple[_Lane, ...]]) -> int:
    """Elements that the largest round takes of a buffer."""
    return max((sum(lane.buffered for lane in lanes) for lanes in rounds), default=0)

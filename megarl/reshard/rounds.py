"""Deals a plan's transfers to rounds that fit the buffers, the same on all ranks.

Ranks go through the tensors in one order, and a round is a stretch of them: as many as fit the
buffers of the rank with the most to send or receive. Every rank says how far it would come from
each place, and all go as far as the slowest. A tensor too large for a round is cut by rows. What is
relayed travels two rounds later: by then it has arrived and been unpacked.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from megarl.errors import PlanError
from megarl.layout import Box, Plan, Transfer

ALONE_ELEMENTS = 1 << 16
"""From this size on a transfer is a message of its own, which needs no buffer on a side where its
region is contiguous and of the wire's type."""
RELAY_DELAY = 2
"""Rounds from a transfer to those that pass its content on."""
Vector = NDArray[np.int64]


class Agree(Protocol):
    """An elementwise reduction of int64 vectors over all ranks of the plan."""

    def __call__(self, vector: Vector, *, largest: bool) -> Vector:
        """The largest of every element, or the smallest."""


@dataclass(frozen=True, slots=True)
class Message:
    """Transfers that travel between two ranks at once, in this order."""

    peer: int
    transfers: tuple[Transfer, ...]

    @property
    def numel(self) -> int:
        """Elements in the message."""
        return sum(transfer.box.numel for transfer in self.transfers)


@dataclass(frozen=True, slots=True)
class Round:
    """What one rank exchanges at one time; messages to a peer in the order in which it has them."""

    sends: tuple[Message, ...]
    receives: tuple[Message, ...]


def make_rounds(
    plan: Plan, rank: int, capacity: int, agree: Agree, alone_elements: int = ALONE_ELEMENTS
) -> tuple[Round, ...]:
    """This rank's part of each round; their number is the same on all ranks.

    capacity: elements that a rank can send in one round, and as many receive. All ranks call it
    together. Raises PlanError, on all of them, where one row of a tensor is more than that.
    """
    lanes = _Lanes(plan, rank)
    relays = bool(agree(np.array([int(lanes.has_relays)]), largest=True)[0])
    room = capacity // 2 if relays else capacity
    parts, short = agree(np.concatenate(lanes.parts_needed(room)), largest=True).reshape(2, -1)
    if short.any():
        tensor = int(short.argmax())
        raise PlanError(
            f"weight_sync.buffer_megabytes is too small: one row of {plan.tensors[tensor]} for all "
            f"its receivers is {short[tensor]} elements, and a buffer has room for {room}"
        )
    steps = [(tensor, part) for tensor in range(len(parts)) for part in range(parts[tensor])]
    reach = agree(lanes.reach(steps, parts, room), largest=False)
    found: defaultdict[int, tuple[list[Transfer], list[Transfer]]] = defaultdict(lambda: ([], []))
    count = start = 0
    while start < len(steps):
        for tensor, part in steps[start : reach[start]]:
            for lane, direction, relay in lanes.lanes:
                at = count + RELAY_DELAY * relay
                for transfer in lane[tensor]:
                    found[at][direction].extend(_part(transfer, part, int(parts[tensor])))
        start, count = int(reach[start]), count + 1
    return tuple(
        Round(
            _messages(found[index][0], "dst", alone_elements),
            _messages(found[index][1], "src", alone_elements),
        )
        for index in range(count + RELAY_DELAY * relays)
    )


def portions(transfers: Iterable[Transfer], capacity: int) -> list[tuple[Transfer, ...]]:
    """Transfers in their order, cut by rows where they must be, so many elements at a time.

    Raises PlanError where one row is more than `capacity`.
    """
    found: list[list[Transfer]] = [[]]
    size = 0
    for transfer in transfers:
        parts = 1
        while (largest := _largest_part(transfer, parts)) > capacity:
            if parts >= _rows(transfer):
                raise PlanError(
                    f"weight_sync.buffer_megabytes is too small: one row of {transfer.tensor} is "
                    f"{largest} elements, and a buffer has room for {capacity}"
                )
            parts = min(2 * parts, _rows(transfer))
        for number in range(parts):
            for part in _part(transfer, number, parts):
                if size + part.box.numel > capacity and found[-1]:
                    found.append([])
                    size = 0
                found[-1].append(part)
                size += part.box.numel
    return [tuple(some) for some in found if some]


class _Lanes:
    """One rank's transfers by tensor, in four lanes: sent, received; direct, relayed."""

    def __init__(self, plan: Plan, rank: int) -> None:
        number = {tensor: index for index, tensor in enumerate(plan.tensors)}
        self._count = len(plan.tensors)
        self.lanes: list[tuple[list[list[Transfer]], int, bool]] = []
        for direction, transfers in enumerate((plan.sends(rank), plan.receives(rank))):
            for relay in (False, True):
                lane: list[list[Transfer]] = [[] for _ in plan.tensors]
                for transfer in transfers:
                    if transfer.relay == relay:
                        lane[number[transfer.tensor]].append(transfer)
                self.lanes.append((lane, direction, relay))
        self.has_relays = any(t.relay for t in plan.sends(rank))

    def parts_needed(self, room: int) -> tuple[Vector, Vector]:
        """Into how many parts each tensor must be cut for a part to fit.

        And the elements of the smallest part, where that does not fit either, or 0.
        """
        found = [self._parts_needed(tensor, room) for tensor in range(self._count)]
        parts, short = np.array(found, dtype=np.int64).reshape(-1, 2).T
        return parts, short

    def _parts_needed(self, tensor: int, room: int) -> tuple[int, int]:
        parts = 1
        for lane, _, _ in self.lanes:
            rows = max((_rows(transfer) for transfer in lane[tensor]), default=1)
            while (largest := sum(_largest_part(t, parts) for t in lane[tensor])) > room:
                if parts >= rows:
                    return parts, largest
                parts = min(2 * parts, rows)
        return parts, 0

    def reach(self, steps: Sequence[tuple[int, int]], parts: Vector, room: int) -> Vector:
        """From each step, the first one that no longer fits into the same round."""
        reach = np.full(len(steps), len(steps))
        for lane, _, _ in self.lanes:
            loads = [
                sum(_size_of_part(t, part, int(parts[tensor])) for t in lane[tensor])
                for tensor, part in steps
            ]
            before = np.concatenate([[0], np.cumsum(loads, dtype=np.int64)])
            fits = np.searchsorted(before, before[:-1] + room, side="right") - 1
            reach = np.minimum(reach, fits)
        return reach


def _messages(
    transfers: Iterable[Transfer], peer_side: str, alone_elements: int
) -> tuple[Message, ...]:
    by_peer: defaultdict[int, list[Transfer]] = defaultdict(list)
    for transfer in transfers:
        by_peer[getattr(transfer, peer_side)].append(transfer)
    messages = []
    for peer in sorted(by_peer):
        small = tuple(t for t in by_peer[peer] if t.box.numel < alone_elements)
        messages += [Message(peer, small)] if small else []
        messages += [Message(peer, (t,)) for t in by_peer[peer] if t.box.numel >= alone_elements]
    return tuple(messages)


def _dim(transfer: Transfer) -> int:
    return next((dim for dim, size in enumerate(transfer.box.shape) if size > 1), 0)


def _rows(transfer: Transfer) -> int:
    return transfer.box.shape[_dim(transfer)]


def _largest_part(transfer: Transfer, parts: int) -> int:
    rows = _rows(transfer)
    return -(-rows // parts) * (transfer.box.numel // rows)


def _size_of_part(transfer: Transfer, part: int, parts: int) -> int:
    rows = _rows(transfer)
    count = (part + 1) * rows // parts - part * rows // parts
    return count * (transfer.box.numel // rows)


def _part(transfer: Transfer, part: int, parts: int) -> Iterator[Transfer]:
    """The part's rows of a transfer, if it has any."""
    dim, rows = _dim(transfer), _rows(transfer)
    start, stop = part * rows // parts, (part + 1) * rows // parts
    if start == stop:
        return
    lo, hi = list(transfer.box.lo), list(transfer.box.hi)
    lo[dim], hi[dim] = lo[dim] + start, lo[dim] + stop
    yield replace(
        transfer,
        box=Box(tuple(lo), tuple(hi)),
        src_offset=transfer.src_offset + start * transfer.src_strides[dim],
        dst_offset=transfer.dst_offset + start * transfer.dst_strides[dim],
    )

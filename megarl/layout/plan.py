"""The planner: which element goes from which rank to which, decided once, the same everywhere."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256

from megarl.layout.box import Box
from megarl.layout.deal import GRAIN
from megarl.layout.match import Match, match_pieces, single_node
from megarl.layout.placement import Piece, Placement
from megarl.layout.spread import plan_order


@dataclass(frozen=True, slots=True)
class Transfer:
    """One box of one tensor, from a region of the source's buffer to one of the destination's."""

    tensor: str
    box: Box
    src: int
    """Ranks, as the caller numbered them."""
    dst: int
    src_buffer: str
    src_offset: int
    """Elements, from the start of the buffer."""
    src_strides: tuple[int, ...]
    """Elements, one per dim of the box."""
    dst_buffer: str
    dst_offset: int
    dst_strides: tuple[int, ...]
    relay: bool = False
    """Whether src_buffer is a destination buffer of `src`, which another transfer fills before."""


@dataclass(frozen=True)
class Plan:
    """All transfers, or one rank's part of them, in one order for all ranks.

    What a rank sends to a peer, in plan order, is what that peer receives from it, in plan order.
    """

    transfers: tuple[Transfer, ...]
    lower_bounds: tuple[tuple[int, int], ...]
    """(destination rank, elements needed that the rank does not hold), of the ranks kept."""
    tensors: tuple[str, ...]
    """All tensors of the sources, in the order in which the transfers go through them."""
    fingerprint: str
    """Digest of everything that decides the plan."""

    def sends(self, rank: int) -> tuple[Transfer, ...]:
        """What the rank sends over the wire."""
        return self._by_role[0].get(rank, ())

    def receives(self, rank: int) -> tuple[Transfer, ...]:
        """What the rank receives over the wire."""
        return self._by_role[1].get(rank, ())

    def local(self, rank: int) -> tuple[Transfer, ...]:
        """What the rank copies from its own buffers."""
        return self._by_role[2].get(rank, ())

    @cached_property
    def _by_role(self) -> tuple[dict[int, tuple[Transfer, ...]], ...]:
        roles: tuple[defaultdict[int, list[Transfer]], ...] = tuple(
            defaultdict(list) for _ in range(3)
        )
        for transfer in self.transfers:
            if transfer.src == transfer.dst:
                roles[2][transfer.src].append(transfer)
            else:
                roles[0][transfer.src].append(transfer)
                roles[1][transfer.dst].append(transfer)
        return tuple({rank: tuple(part) for rank, part in role.items()} for role in roles)

    def received_elements(self, rank: int) -> int:
        """Elements that reach the rank over the wire."""
        return sum(transfer.box.numel for transfer in self.receives(rank))

    def sent_elements(self, rank: int) -> int:
        """Elements that the rank puts on the wire."""
        return sum(transfer.box.numel for transfer in self.sends(rank))

    def lower_bound_elements(self, rank: int) -> int:
        """Elements that the rank needs and does not hold: no plan can receive fewer.

        Raises KeyError for a rank whose part this plan does not keep; 0 for a mere source.
        """
        return dict(self.lower_bounds)[rank]

    def digest(self) -> str:
        """sha256, in hex, of all that decides the whole plan: placements, ranks, nodes.

        Equal on every rank of one job, whichever part of the plan the rank keeps.
        """
        return self.fingerprint

    def table(self) -> str:
        """One line per transfer, for people."""
        lines = ["tensor | box | elements | from | to"]
        lines += [
            f"{t.tensor} | {t.box} | {t.box.numel} | "
            f"{t.src}:{t.src_buffer}+{t.src_offset}{' (relayed)' if t.relay else ''} | "
            f"{t.dst}:{t.dst_buffer}+{t.dst_offset}"
            for t in self.transfers
        ]
        return "\n".join(lines)

    def text(self) -> str:
        """Digest, summary and table, as it is kept beside a run."""
        return f"plan {self.digest()}\n{self.summary()}\n\n{self.table()}\n"

    def summary(self) -> str:
        """One line per rank, elements: sent, received, its lower bound, copied locally."""
        bounds = dict(self.lower_bounds)
        lines = ["rank | sent | received | lower bound | local"]
        for rank in sorted(bounds):
            local = sum(transfer.box.numel for transfer in self.local(rank))
            lines.append(
                f"{rank} | {self.sent_elements(rank)} | {self.received_elements(rank)} | "
                f"{bounds[rank]} | {local}"
            )
        return "\n".join(lines)


def make_plan(
    sources: Mapping[int, Placement],
    destinations: Mapping[int, Placement],
    *,
    node_of: Callable[[int], int] | None = None,
    rank: int | None = None,
    grain: int = GRAIN,
) -> Plan:
    """Plan the move of every destination element from a rank that holds it; written once each.

    What a destination holds is taken locally; else from its node; else it crosses to the node once,
    and is passed on there. Equal holders give equal shares, cut no finer than `grain` elements.
    node_of: rank -> node; default: one node. rank: keep only what this rank sends, receives or
    copies; every decision is that of the full plan.
    Raises PlanError where a destination box has no source.
    """
    matches = match_pieces(sources, destinations, node_of or single_node, rank=rank, grain=grain)
    return assemble(matches, sources, destinations, node_of=node_of, rank=rank, grain=grain)


def assemble(
    matches: Iterable[Match],
    sources: Mapping[int, Placement],
    destinations: Mapping[int, Placement],
    *,
    node_of: Callable[[int], int] | None = None,
    rank: int | None = None,
    grain: int = GRAIN,
) -> Plan:
    """Make a plan of decisions taken by `match_pieces` or by a faster equal of it."""
    transfers = tuple(
        Transfer(
            tensor=dst_piece.tensor,
            box=box,
            src=src,
            dst=dst,
            src_buffer=src_piece.buffer,
            src_offset=src_piece.offset_of(box),
            src_strides=src_piece.strides,
            dst_buffer=dst_piece.buffer,
            dst_offset=dst_piece.offset_of(box),
            dst_strides=dst_piece.strides,
            relay=relay,
        )
        for src, dst, src_piece, dst_piece, box, relay in matches
        if rank is None or rank in (src, dst)
    )
    ranks = sorted({*sources, *destinations}) if rank is None else [rank]
    bounds = tuple(
        (each, missing_elements(sources.get(each, ()), destinations.get(each, ())))
        for each in ranks
    )
    fingerprint = _fingerprint(sources, destinations, node_of or single_node, grain)
    return Plan(transfers, bounds, plan_order(sources), fingerprint)


def missing_elements(held: Placement, needed: Placement) -> int:
    """Different elements of `needed` that no piece of `held` covers."""
    boxes: defaultdict[str, dict[Box, None]] = defaultdict(dict)
    for piece in held:
        boxes[piece.tensor][piece.box] = None
    missing = 0
    for piece in needed:
        known = boxes[piece.tensor]
        if piece.box not in known:
            missing += sum(box.numel for box in piece.box.minus(known))
            known[piece.box] = None
    return missing


def balance(plan: Plan, ranks: Iterable[int]) -> float:
    """Largest over mean number of elements sent by these ranks; 1.0 is even."""
    sent = Counter({rank: plan.sent_elements(rank) for rank in ranks})
    total = sum(sent.values())
    return max(sent.values()) * len(sent) / total if total else 1.0


def _fingerprint(
    sources: Mapping[int, Placement],
    destinations: Mapping[int, Placement],
    node_of: Callable[[int], int],
    grain: int,
) -> str:
    # Ranks that hold the same share one placement object: each is hashed once.
    seen: dict[int, bytes] = {}

    def of(placement: Placement) -> bytes:
        if id(placement) not in seen:
            seen[id(placement)] = sha256("\n".join(map(_line, placement)).encode()).digest()
        return seen[id(placement)]

    total = sha256(f"grain {grain}\n".encode())
    for side in (sources, destinations):
        total.update(f"{len(side)}\n".encode())
        for rank in sorted(side):
            total.update(f"{rank} {node_of(rank)} ".encode() + of(side[rank]))
    return total.hexdigest()


def _line(piece: Piece) -> str:
    box = piece.box
    return f"{piece.tensor} {box.lo} {box.hi} {piece.buffer} {piece.offset} {piece.strides}"

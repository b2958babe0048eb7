"""What a move of weights costs: bytes by kind of link, and seconds under a model of the links."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple


class Totals(NamedTuple):
    """Elements that one rank moves in a plan."""

    local: int
    """Copied from its own buffers."""
    near_received: int
    """From ranks on its node."""
    far_received: int
    """From other nodes."""
    near_sent: int
    far_sent: int


@dataclass(frozen=True, slots=True)
class LinkModel:
    """What a rank can move at the same time, in GB/s (1e9 bytes) and direction.

    The defaults are those of an H100 node: copies inside a GPU's memory, NVLink, and one 400 Gb/s
    adapter per GPU.
    """

    same_gpu: float = 1300.0
    in_node: float = 400.0
    between_nodes: float = 50.0


@dataclass(frozen=True, slots=True)
class Cost:
    """One scheme over all ranks; bytes."""

    local_max: int
    near_max: int
    """Received from the rank's node, by the rank that receives most."""
    far_max: int
    sent_max: int
    near_total: int
    far_total: int
    seconds: float
    """The slowest rank's slowest link: all links work at the same time, and packing is hidden."""

    @property
    def received_max(self) -> int:
        """An upper bound of what one rank receives over any link."""
        return self.near_max + self.far_max


def cost_of(totals: Iterable[Totals], itemsize: int, links: LinkModel) -> Cost:
    """Sums over ranks; itemsize: bytes of an element on the wire."""
    rows = list(totals)
    local = max(row.local for row in rows) * itemsize
    near = max(row.near_received for row in rows) * itemsize
    far = max(row.far_received for row in rows) * itemsize
    near_sent = max(row.near_sent for row in rows) * itemsize
    far_sent = max(row.far_sent for row in rows) * itemsize
    times = (
        local / links.same_gpu,
        max(near, near_sent) / links.in_node,
        max(far, far_sent) / links.between_nodes,
    )
    return Cost(
        local_max=local,
        near_max=near,
        far_max=far,
        sent_max=max(row.near_sent + row.far_sent for row in rows) * itemsize,
        near_total=sum(row.near_received for row in rows) * itemsize,
        far_total=sum(row.far_received for row in rows) * itemsize,
        seconds=max(times) / 1e9,
    )

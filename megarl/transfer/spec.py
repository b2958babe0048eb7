"""What trainer and servers agree on: everything from which each rank makes its part of the plan.

Ranks of a transfer: the trainer's universe first, as it is; then the workers of every server, one
server after the other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, cast

import torch

from megarl import native
from megarl.errors import PlanError
from megarl.layout import ModelShape, Placement, Plan, ReplicaLayout
from megarl.layout.megatron_side import LayerNorm
from megarl.layout.replica import VllmSlice
from megarl.mesh.group import RankGroup
from megarl.mesh.layout import MeshLayout
from megarl.reshard.placements import actor_placements, rollout_placements


@dataclass(frozen=True, slots=True)
class ServerPlace:
    """One vLLM server: how it is called in messages, and how its workers split the model."""

    name: str
    replica: ReplicaLayout


@dataclass(frozen=True, slots=True)
class TransferSpec:
    """One trainer and its servers; travels as JSON in vLLM's `init_info`."""

    shape: ModelShape
    actor: MeshLayout
    actor_ranks: tuple[int, ...]
    layernorm: LayerNorm
    trainers: int
    """Ranks of the trainer's universe, the actor's among them."""
    servers: tuple[ServerPlace, ...]
    wire: str
    """Name of the torch dtype that weights travel in."""
    buffer_bytes: int
    overlap: bool
    timeout_s: float

    @property
    def size(self) -> int:
        """Ranks in all."""
        return self.first_rank(len(self.servers))

    @property
    def wire_dtype(self) -> torch.dtype:
        """The type that weights travel in."""
        return cast(torch.dtype, getattr(torch, self.wire))

    def first_rank(self, server: int) -> int:
        """Rank of the first worker of server number `server`."""
        return self.trainers + sum(place.replica.size for place in self.servers[:server])

    def who(self, rank: int) -> str:
        """A rank, for messages."""
        if rank < self.trainers:
            return f"trainer rank {rank}"
        first = self.trainers
        for place in self.servers:
            if rank < first + place.replica.size:
                return f"worker {rank - first} of {place.name}"
            first += place.replica.size
        raise PlanError(f"weight transfer: rank {rank} of {first} ranks")

    def legend(self) -> str:
        """Which ranks are whose, for messages that have numbers only."""
        parts = [f"ranks {_span(0, self.trainers)}: the trainer"]
        for index, place in enumerate(self.servers):
            first = self.first_rank(index)
            parts.append(f"{_span(first, first + place.replica.size)}: {place.name}")
        return "; ".join(parts)

    def slice_of(self, rank: int) -> VllmSlice:
        """What the worker with this rank holds of its server's model."""
        for index, place in enumerate(self.servers):
            first = self.first_rank(index)
            if first <= rank < first + place.replica.size:
                return place.replica.slice_of(rank - first)
        raise PlanError(f"weight transfer: rank {rank} is no worker")

    def sources(self) -> dict[int, Placement]:
        """What the trainer's ranks hold."""
        return actor_placements(self.shape, self.actor, self.actor_ranks, self.layernorm)

    def destinations(self) -> dict[int, Placement]:
        """What the servers' workers need."""
        found: dict[int, Placement] = {}
        for index, place in enumerate(self.servers):
            first = self.first_rank(index)
            ranks = range(first, first + place.replica.size)
            found |= rollout_placements(self.shape, place.replica, ranks)
        return found

    def plan(self, group: RankGroup) -> Plan:
        """This rank's part."""
        return native.plan(
            self.sources(),
            self.destinations(),
            node_of=group.node_of.__getitem__,
            rank=group.rank,
        )

    def to_json(self) -> dict[str, Any]:
        """As plain lists, dicts, numbers and strings."""
        return asdict(self)

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> TransferSpec:
        """Back from JSON; PlanError for a description by another version of this package."""
        try:
            places = [
                ServerPlace(each["name"], ReplicaLayout(**each["replica"]))
                for each in data["servers"]
            ]
            parts = {
                "shape": ModelShape(**data["shape"]),
                "actor": MeshLayout(**data["actor"]),
                "actor_ranks": tuple(data["actor_ranks"]),
                "servers": tuple(places),
            }
            return TransferSpec(**{**data, **parts})
        except (TypeError, KeyError) as error:
            raise PlanError(
                f"weight transfer: the trainer describes itself in a way unknown here ({error}): "
                "install the same version of megarl beside trainer and servers"
            ) from error


def _span(start: int, stop: int) -> str:
    return str(start) if stop - start == 1 else f"{start}-{stop - 1}"

"""What a validated config amounts to: every role's ranks, mesh and model shape, as plain data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from megarl.layout.replica import ReplicaLayout
from megarl.layout.rules import ModelShape
from megarl.mesh.layout import MeshLayout


@dataclass(frozen=True, slots=True)
class RolePlan:
    """One Megatron role."""

    ranks: tuple[int, ...]
    """Universe ranks of its pool."""
    layout: MeshLayout
    shape: ModelShape
    path: str
    """Hugging Face folder of its config and weights."""
    hf: dict[str, Any]
    """Its config.json."""


@dataclass(frozen=True, slots=True)
class RunPlan:
    """The whole run."""

    world_size: int
    actor: RolePlan
    critic: RolePlan | None
    reference: RolePlan | None
    reward: RolePlan | None
    rollout_ranks: tuple[int, ...]
    """Ranks that hold replicas; () where servers outside of the run do."""
    replica: ReplicaLayout
    """Each of the rollout's replicas, or servers."""

    @property
    def roles(self) -> dict[str, RolePlan]:
        """The Megatron roles that the run has, by name (their section of the config)."""
        known = {
            "actor": self.actor,
            "critic": self.critic,
            "reference": self.reference,
            "reward": self.reward,
        }
        return {name: role for name, role in known.items() if role is not None}

    @property
    def pools(self) -> tuple[tuple[int, ...], ...]:
        """Distinct pools, by their first rank."""
        found = {role.ranks for role in self.roles.values()} | {self.rollout_ranks}
        return tuple(sorted(found - {()}))

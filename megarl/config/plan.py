"""What a validated config amounts to: every role's ranks, mesh and model shape, as plain data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

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
    rollout_ranks: tuple[int, ...]
    rollout_tensor_parallel_size: int

    @property
    def pools(self) -> tuple[tuple[int, ...], ...]:
        """Distinct pools, by their first rank."""
        roles = (self.actor, self.critic, self.reference)
        found = {role.ranks for role in roles if role is not None} | {self.rollout_ranks}
        return tuple(sorted(found))

"""What jobs build runs from: plans, roles, rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from worker import Rank

from megarl.config.schema import Config, ModelConfig, OptimizerConfig
from megarl.layout import ReplicaLayout, model_shape_from_hf, with_scalar_head
from megarl.mesh.layout import MeshLayout
from megarl.mesh.run_plan import RolePlan, RunPlan
from megarl.roles.actor import Actor
from megarl.train.build import Builder
from megarl.validate.models import read_hf_config


@dataclass(frozen=True)
class RoleSpec:
    """One role of a test: its universe ranks and its mesh."""

    ranks: tuple[int, ...]
    layout: MeshLayout


def role_plan(path: str, spec: RoleSpec, *, scalar_head: bool = False) -> RolePlan:
    """The plan of one role."""
    hf = read_hf_config(path)
    shape = model_shape_from_hf(hf)
    shape = with_scalar_head(shape) if scalar_head else shape
    return RolePlan(spec.ranks, spec.layout, shape, path, hf)


def run_plan(
    path: str,
    actor: RoleSpec,
    critic: RoleSpec | None = None,
    reference: RoleSpec | None = None,
    rollout_tp: int | ReplicaLayout = 1,
    reward: tuple[str, RoleSpec] | None = None,
    rollout_ranks: tuple[int, ...] = (),
) -> RunPlan:
    """The plan of a run; reward: folder and place; without rollout_ranks they are the actor's."""
    specs = (actor, critic, reference, reward[1] if reward else None)
    world = {rank for spec in specs if spec for rank in spec.ranks} | set(rollout_ranks)
    return RunPlan(
        world_size=len(world),
        actor=role_plan(path, actor),
        critic=role_plan(path, critic, scalar_head=True) if critic else None,
        reference=role_plan(path, reference) if reference else None,
        reward=role_plan(*reward) if reward else None,
        rollout_ranks=rollout_ranks or actor.ranks,
        replica=ReplicaLayout(rollout_tp) if isinstance(rollout_tp, int) else rollout_tp,
    )


def make_actor(
    rank: Rank,
    path: str,
    layout: MeshLayout,
    *,
    dtype: str = "float32",
    optimizer: OptimizerConfig | None = None,
    ranks: Sequence[int] | None = None,
) -> Any:
    """An actor with the folder's weights."""
    spec = RoleSpec(tuple(ranks or range(rank.universe.size)), layout)
    plan = run_plan(path, spec)
    builder = Builder(Config(), plan, rank.universe)
    model = ModelConfig(dtype=dtype)
    return builder.role("actor", Actor, plan.actor, model, optimizer, 10)

"""The choice of strides: no other choice leaves more weights in place, on as few nodes."""

from __future__ import annotations

from dataclasses import replace

import pytest
from layout_world import model

from megarl.layout import ModelShape, ReplicaLayout, make_plan
from megarl.mesh.layout import MeshLayout
from megarl.mesh.run_plan import RolePlan, RunPlan
from megarl.reshard.assignment import assign_shards
from megarl.reshard.placements import actor_placements, rollout_placements

DENSE = model(vocab_size=128, num_hidden_layers=4)
EXPERTS = model("qwen3_moe", vocab_size=128, num_hidden_layers=4)


def run_plan(
    layout: MeshLayout,
    replica: ReplicaLayout,
    *,
    shape: ModelShape = DENSE,
    rollout_ranks: tuple[int, ...] = (),
) -> RunPlan:
    """A run of that actor on the first ranks."""
    ranks = tuple(range(layout.size))
    actor = RolePlan(ranks, layout, shape, "", {})
    world = len({*ranks, *rollout_ranks})
    return RunPlan(world, actor, None, None, None, rollout_ranks or ranks, replica)


def received(plan: RunPlan) -> int:
    """Elements that all ranks together receive: counted by the planner itself."""
    shape = plan.actor.shape
    sources = actor_placements(shape, plan.actor.layout, plan.actor.ranks)
    needed = rollout_placements(shape, plan.replica, plan.rollout_ranks)
    return sum(missing for _, missing in make_plan(sources, needed).lower_bounds)


def chosen(plan: RunPlan, ranks_per_node: int = 64) -> ReplicaLayout:
    """What `assign_shards` gives."""
    return assign_shards(plan, lambda rank: rank // ranks_per_node).replica


@pytest.mark.parametrize(
    ("layout", "replica", "shape"),
    [
        (MeshLayout(tp=4), ReplicaLayout(2), DENSE),
        (MeshLayout(tp=4, dp=2), ReplicaLayout(2), DENSE),
        (MeshLayout(tp=2, pp=2), ReplicaLayout(2), DENSE),
        (MeshLayout(tp=2, pp=2, dp=2), ReplicaLayout(2, pp=2), DENSE),
        (MeshLayout(tp=2, pp=2), ReplicaLayout(1, pp=2), DENSE),
        (MeshLayout(pp=4, dp=2), ReplicaLayout(4, pp=2), DENSE),
        (MeshLayout(tp=2, dp=4, ep=4), ReplicaLayout(4, expert_parallel=True), EXPERTS),
        (MeshLayout(dp=8, ep=8), ReplicaLayout(2, expert_parallel=True), EXPERTS),
    ],
)
def test_no_choice_receives_less(
    layout: MeshLayout, replica: ReplicaLayout, shape: ModelShape
) -> None:
    plan = run_plan(layout, replica, shape=shape)
    every = {
        choice: received(replace(plan, replica=choice))
        for choice in replica.assignments(layout.size)
    }
    best = chosen(plan)
    assert every[best] == min(every.values())
    assert best == next(choice for choice, count in every.items() if count == every[best])


def test_the_interval_groups_of_hybridflow() -> None:
    """Tensor parallelism 4 in training, 2 in generation: {0, 2} and {1, 3}; half is received."""
    plan = run_plan(MeshLayout(tp=4), ReplicaLayout(2))
    replica = chosen(plan)
    assert [replica.members(0), replica.members(1)] == [(0, 2), (1, 3)]
    ours, neighbours = received(replace(plan, replica=replica)), received(plan)
    assert ours / neighbours == pytest.approx(2 / 3, rel=0.02)


def test_stages_go_where_the_actors_stages_are() -> None:
    replica = chosen(run_plan(MeshLayout(tp=2, pp=2), ReplicaLayout(1, pp=2)))
    assert [replica.members(0), replica.members(1)] == [(0, 2), (1, 3)]


def test_a_replica_stays_in_its_node() -> None:
    """Interval groups would span the two nodes of two ranks."""
    assert chosen(run_plan(MeshLayout(tp=4), ReplicaLayout(2)), 2).members(0) == (0, 1)


def test_another_pool_holds_nothing() -> None:
    plan = run_plan(MeshLayout(tp=4), ReplicaLayout(2), rollout_ranks=(4, 5, 6, 7))
    assert chosen(plan).members(0) == (0, 1)

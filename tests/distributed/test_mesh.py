"""Meshes, the globals of Megatron, the control exchange and rows between ranks.

Proven: groups are those of Megatron-Core's own RankGenerator; parallel_state answers inside
`activate()` only, and with the active role's groups; a rank at another verb is named, with both
verbs, on every rank; rows arrive from any owner at any owner. Not shown: NCCL, several nodes.
"""

from __future__ import annotations

import jobs_mesh
import pytest
from cluster import Cluster

from megarl.errors import ConfigError
from megarl.mesh.layout import MeshLayout
from megarl.mesh.universe import Pool, check_pools

pytestmark = pytest.mark.dist


LAYOUTS = [
    MeshLayout(tp=2, pp=2),
    MeshLayout(dp=2, pp=2),
    MeshLayout(tp=2, dp=2),
    MeshLayout(tp=2, cp=2),
    MeshLayout(cp=2, dp=2),
    MeshLayout(dp=4),
    MeshLayout(pp=4),
]


@pytest.mark.parametrize("layout", LAYOUTS, ids=MeshLayout.describe)
def test_groups_are_megatrons(layout: MeshLayout, cluster: Cluster) -> None:
    """Megatron-Core deals the same ranks in the order tp-cp-ep-dp-pp."""
    from megatron.core.parallel_state import RankGenerator

    oracle = RankGenerator(
        tp=layout.tp, ep=1, dp=layout.dp, pp=layout.pp, cp=layout.cp, order="tp-cp-ep-dp-pp"
    )
    tokens = {
        "tp": "tp", "pp": "pp", "dp": "dp", "cp": "cp", "mp": "tp-pp", "tp_cp": "tp-cp",
        "dp_cp": "dp-cp", "tp_dp_cp": "tp-dp-cp",
    }  # fmt: skip
    for rank, groups in enumerate(cluster.run(4, jobs_mesh.groups_of, layout)):
        for field, token in tokens.items():
            (expected,) = [ranks for ranks in oracle.get_ranks(token) if rank in ranks]
            assert groups[field] == tuple(sorted(expected)), field
        stages = groups["pp"]
        first, last = stages[0], stages[-1]
        assert groups["pos_embd"] == ((first,) if rank == first else ())
        assert groups["embd"] == (tuple(sorted({first, last})) if rank in (first, last) else ())


ANSWER_NONE = dict.fromkeys(
    (
        "get_virtual_pipeline_model_parallel_rank",
        "get_virtual_pipeline_model_parallel_world_size",
        "get_expert_tensor_parallel_rank",
        "get_expert_tensor_parallel_world_size",
    )
)
"""Getters in which Megatron itself answers None, where all others raise."""


def test_globals_answer_inside_activate_only(cluster: Cluster) -> None:
    layouts = {"actor": MeshLayout(pp=2, vpp=2, tp=2), "critic": MeshLayout(dp=4)}
    for rank, found in enumerate(cluster.run(4, jobs_mesh.global_getters, layouts)):
        for outside in ("before", "after actor", "after critic"):
            assert found[outside] == ANSWER_NONE, outside
        pair = tuple(range(rank // 2 * 2, rank // 2 * 2 + 2))
        assert found["actor"]["get_tensor_model_parallel_group"] == pair
        assert found["actor"]["get_pipeline_model_parallel_group"] == (rank % 2, rank % 2 + 2)
        assert found["actor"]["get_virtual_pipeline_model_parallel_world_size"] == 2
        assert found["critic"]["get_data_parallel_group"] == (0, 1, 2, 3)
        assert found["critic"]["get_tensor_model_parallel_world_size"] == 1
        assert "actor" in found["nested"] or "critic" in found["nested"]


def test_roles_keep_their_own_generators(cluster: Cluster) -> None:
    assert cluster.run(2, jobs_mesh.rng_states_stay_apart) == [True, True]


def test_a_rank_at_another_verb_is_named(cluster: Cluster) -> None:
    """Every rank's message has the odd rank's verb and its own, or the odd rank's peers'."""
    messages = cluster.run(4, jobs_mesh.disagree, 2, "update_critic", "update_actor")
    for rank, message in enumerate(messages):
        assert "(update_critic)" in message and "(update_actor)" in message
        named = 0 if rank == 2 else 2
        assert message.startswith(f"rank {named} is at verb")


def test_control_exchange(cluster: Cluster) -> None:
    for gathered, agreed, summed in cluster.run(4, jobs_mesh.exchange_facts):
        assert gathered == [{"rank": r, "text": "x" * r * 100} for r in range(4)]
        assert agreed == {"a": 8.0, "only0": 2.0, "only1": 2.0, "only2": 2.0, "only3": 2.0}
        assert summed == [4.0, 6.0]


def test_texts_come_to_the_first_rank_alone(cluster: Cluster) -> None:
    first, *others = cluster.run(3, jobs_mesh.collect_texts)
    assert first == [["x" * 100_000 * rank, rank] for rank in range(3)] and others == [[], []]


@pytest.mark.parametrize("seed", range(3))
def test_rows_arrive(seed: int, cluster: Cluster) -> None:
    """From any owner at any owner, over pools, empty rows and ranks without rows included."""
    cluster.run([range(2), range(2, 5)], jobs_mesh.shuffle_rows, seed)


@pytest.mark.parametrize(
    ("pools", "words"),
    [
        ([(0, 1), (1, 2, 3)], "rank 1 is in pools pool0 and pool1"),
        ([(0, 1), (3,)], "ranks [2] belong to no pool"),
        ([(0, 1, 2, 3, 4)], "ranks [4] do not exist"),
    ],
)
def test_pools_must_partition_the_ranks(pools: list[tuple[int, ...]], words: str) -> None:
    named = [Pool(f"pool{index}", ranks) for index, ranks in enumerate(pools)]
    with pytest.raises(ConfigError) as caught:
        check_pools(named, 4)
    assert words in str(caught.value)

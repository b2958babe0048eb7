"""The executor on real processes: what arrives, how often it crosses nodes, in what memory."""

from __future__ import annotations

import pytest
from cluster import Cluster, JobError
from jobs_reshard import Options, build_only, reshard, reshard_without
from reshard_worlds import model_world

from megarl.layout import make_plan

pytestmark = pytest.mark.dist
WORLDS = {
    "four nodes of one": dict(tp=2, pp=2, dp=1, rollout_tp=2, world=4, nodes=(0, 1, 2, 3)),
    "two nodes, relayed": dict(tp=1, pp=2, dp=1, rollout_tp=1, world=4, nodes=(0, 0, 1, 1)),
    "one node": dict(tp=4, pp=1, dp=1, rollout_tp=1, world=4, nodes=(0, 0, 0, 0)),
    "most is here": dict(tp=2, pp=1, dp=2, rollout_tp=2, world=4, nodes=(0, 0, 1, 1)),
}


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("name", WORLDS)
def test_every_element_arrives(cluster: Cluster, name: str, overlap: bool) -> None:
    """Also where large regions go straight from parameter to parameter."""
    world = model_world(tied=overlap, **WORLDS[name])
    alone = 64 if overlap else 1 << 16
    options = Options(overlap=overlap, buffer_bytes=1 << 13, alone_elements=alone)
    plan = make_plan(world.sources, world.destinations, node_of=world.nodes.__getitem__, grain=16)
    for rank, facts in enumerate(cluster.run(4, reshard, world, options)):
        assert facts.wrong == []
        for report in facts.reports:
            assert report.bytes_received == report.lower_bound_bytes
            assert report.bytes_received == 4 * plan.received_elements(rank)
            assert report.buffer_bytes <= 1 << 13
            far = [t for t in plan.receives(rank) if world.nodes[t.src] != world.nodes[t.dst]]
            assert report.bytes_from_other_nodes == 4 * sum(t.box.numel for t in far)
            assert report.rounds > 3 or not plan.receives(rank)
    if name == "two nodes, relayed":
        assert any(t.relay for t in plan.transfers)


@pytest.mark.parametrize(
    ("source", "wire", "destination"),
    [
        ("float32", "bfloat16", "bfloat16"),
        ("float32", "bfloat16", "float32"),
        ("bfloat16", "bfloat16", "bfloat16"),
    ],
)
def test_casts(cluster: Cluster, source: str, wire: str, destination: str) -> None:
    """The wire's type decides what is kept, for what is here as for what is sent and passed on."""
    world = model_world(tied=False, **WORLDS["two nodes, relayed"])
    options = Options(
        source_dtype=source,
        wire_dtype=wire,
        destination_dtype=destination,
        buffer_bytes=4096,
    )
    found = cluster.run(4, reshard, world, options)
    assert any(facts.reports[0].bytes_local > options.buffer_bytes for facts in found)
    for facts in found:
        assert facts.wrong == [] and facts.largest_made < 1024
        assert all(report.buffer_bytes <= options.buffer_bytes for report in facts.reports)


def test_a_peer_that_vanishes(cluster: Cluster) -> None:
    world = model_world(tied=False, **WORLDS["one node"])
    with pytest.raises(JobError, match=r"rank \d waited for rank 2 in vain \(weight sync"):
        cluster.run(4, reshard_without, world, Options(), 2)


def test_a_buffer_too_small_for_a_row(cluster: Cluster) -> None:
    world = model_world(tied=False, **WORLDS["one node"])
    said = cluster.run(4, build_only, world, Options(buffer_bytes=64))
    assert all("weight_sync.buffer_megabytes is too small: one row of" in text for text in said)


def test_a_buffer_too_small_for_one_rank_is_refused_by_all(cluster: Cluster) -> None:
    """Two nodes, PP2 -> TP1 x 4: some ranks pass rows on, and need more room than others."""
    world = model_world(tied=False, **WORLDS["two nodes, relayed"])
    said = cluster.run(4, build_only, world, Options(buffer_bytes=3000))
    assert len(set(said)) == 1 and "too small: one row of" in said[0]

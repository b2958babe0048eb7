"""The executor on streams and NCCL's group calls, both played on the host (see fake_gpu.py).

Proven: events hold everything in the order that it needs, however late a stream is; both ends list
their messages alike; one group call a round; a lost peer is named. Not shown: kernels, NCCL itself.
"""

from __future__ import annotations

import pytest
from cluster import Cluster, JobError
from jobs_reshard import Options, reshard, reshard_without
from reshard_worlds import model_world
from test_executor import WORLDS

pytestmark = pytest.mark.dist


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("name", ["two nodes, relayed", "one node", "most is here"])
def test_streams_keep_their_order(cluster: Cluster, name: str, overlap: bool) -> None:
    world = model_world(tied=False, **WORLDS[name])
    options = Options(
        fake_gpu=True,
        overlap=overlap,
        buffer_bytes=1 << 14,
        alone_elements=256 if overlap else 1 << 16,
        source_dtype="float32",
        wire_dtype="bfloat16",
        destination_dtype="bfloat16",
    )
    for facts in cluster.run(4, reshard, world, options, 3):
        assert facts.wrong == []
        rounds = {report.rounds for report in facts.reports}
        assert len(rounds) == 1
        # Rounds without messages of this rank need no call.
        assert len(facts.group_calls) <= 3 * rounds.pop()
        assert bool(facts.group_calls) == (facts.reports[0].bytes_received > 0)
        messages = facts.reports[0].messages
        received = sum(facts.group_calls) // 3 - 2 * messages
        assert received % 2 == 0 and received >= 0  # a message and its digests


def test_one_rank_alone(cluster: Cluster) -> None:
    world = model_world(tp=1, pp=1, dp=1, rollout_tp=1, world=1, nodes=(0,), tied=True)
    (facts,) = cluster.run(1, reshard, world, Options(fake_gpu=True))
    assert facts.wrong == [] and facts.group_calls == ()
    assert facts.reports[0].bytes_local > 0 and facts.reports[0].regions_verified > 0


def test_a_peer_that_vanishes(cluster: Cluster) -> None:
    world = model_world(tied=False, **WORLDS["one node"])
    words = r"rank \d waited for ranks \[.*2.*\] in vain \(weight sync, round \d+ of \d+: to send"
    with (
        pytest.raises(JobError, match=words),
        cluster.world(range(4), timeout_s=2.0) as four,
    ):
        four.run(reshard_without, world, Options(fake_gpu=True), 2)

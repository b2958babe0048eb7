"""Indexed data sets on four ranks: one order everywhere, and no rank waits for a failed one."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import jobs_indexed
import pytest
from cluster import Cluster
from indexed_corpus import numbered_documents, write_corpus

pytestmark = pytest.mark.dist
RANKS = 4


@pytest.fixture(scope="module")
def blend(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    folder = tmp_path_factory.mktemp("corpora")
    return [
        [2.0, write_corpus(folder / "a", numbered_documents(200, 0))],
        [1.0, write_corpus(folder / "b", numbered_documents(200, 1, first=10_000))],
    ]


def test_all_ranks_and_layouts_read_the_same(
    cluster: Cluster, blend: list[Any], tmp_path: Path
) -> None:
    """One pool, two pools, one process; a cache that is made, that is found, and two nodes' own."""
    shared = [str(tmp_path / "shared")] * RANKS
    first = cluster.run(RANKS, jobs_indexed.read, [blend] * RANKS, shared)
    digest, samples = first[0]
    assert len(samples) == jobs_indexed.COUNT + 4
    assert first == [(digest, samples)] * RANKS
    (made,) = (tmp_path / "shared").iterdir()
    before = {file: file.stat().st_mtime_ns for file in made.iterdir()}
    with cluster.world(range(2), range(2, 4)) as world:
        assert world.run(jobs_indexed.read, [blend] * RANKS, shared) == first
    assert {file: file.stat().st_mtime_ns for file in made.iterdir()} == before, "made again"
    own = [str(tmp_path / f"node{rank // 2}") for rank in range(RANKS)]
    apart = cluster.run(RANKS, jobs_indexed.read, [blend] * RANKS, own, (0, 0, 1, 1))
    assert apart == first
    assert (tmp_path / "node0").is_dir() and (tmp_path / "node1").is_dir()
    assert cluster.run(1, jobs_indexed.read, [blend], [str(tmp_path / "one")]) == first[:1]


@pytest.mark.parametrize(("broken", "name"), [(0, "make_cache"), (2, "load_cache")])
def test_a_rank_that_fails_is_heard_by_all(
    broken: int, name: str, cluster: Cluster, blend: list[Any], tmp_path: Path
) -> None:
    began = time.monotonic()
    found = cluster.run(
        RANKS, jobs_indexed.read_with_failure, broken, name, blend, str(tmp_path / "cache")
    )
    assert time.monotonic() - began < 30, "less than the time-out of a collective"
    text = f"RunError: rank {broken}: opening data.indexed failed: ZeroDivisionError: the disk"
    assert all(isinstance(one, str) and one.startswith(text) for one in found), found


def test_nodes_that_have_different_data(cluster: Cluster, blend: list[Any], tmp_path: Path) -> None:
    """Or have none: what is missing on one node is said on all."""
    other = [blend[0], [1.0, write_corpus(tmp_path / "b", numbered_documents(200, 2))]]
    own = [str(tmp_path / f"node{rank // 2}") for rank in range(RANKS)]
    nodes = (0, 0, 1, 1)
    blends = [blend, blend, other, other]
    for text in cluster.run(RANKS, jobs_indexed.read, blends, own, nodes):
        assert text.startswith("RunError: data.indexed.blend: the data sets differ between ranks")
    gone = [blend[0], [1.0, str(tmp_path / "gone")]]
    for text in cluster.run(RANKS, jobs_indexed.read, [blend, blend, gone, gone], own, nodes):
        assert text.startswith("DataError: rank 2: data.indexed.blend: ") and "gone.idx" in text

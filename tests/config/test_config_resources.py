"""Ranks of every role from the flat resources mapping."""

from __future__ import annotations

import pytest

from megarl.config.load import load_config
from megarl.config.resources import pools_from_resources, wanted_world_size
from megarl.errors import ConfigError


def test_roles_without_ranks_share_the_actors() -> None:
    everything = pools_from_resources({}, 4)
    assert everything.pools == {(0, 1, 2, 3): ("actor", "critic", "reference", "reward", "rollout")}
    split = {"actor_gpus": [0, 1, 2, 3], "critic_gpus": [4, 5], "reference_gpus": [6]}
    pools = pools_from_resources(split, 7)
    assert pools.ranks["rollout"] == (0, 1, 2, 3)
    assert pools.pools == {
        (0, 1, 2, 3): ("actor", "reward", "rollout"),
        (4, 5): ("critic",),
        (6,): ("reference",),
    }


def test_equal_lists_are_one_pool() -> None:
    pools = pools_from_resources({"actor_gpus": [0, 1], "critic_gpus": [0, 1]}, 2)
    assert len(pools.pools) == 1


@pytest.mark.parametrize(
    ("resources", "words"),
    [
        ({"actor_gpus": [0, 1], "critic_gpus": [1, 2]}, ["actor_gpus", "critic_gpus", "rank 1"]),
        ({"actor_gpus": [0, 1, 3]}, ["rank 2 of 4", "ranks 0 to 2"]),
        ({"actor_gpus": [0, 1, 2, 3, 4, 9]}, ["actor_gpus", "rank 4, 9", "4 processes"]),
        ({"actor_gpus": [0, 1]}, ["rank 2, 3 of 4", "start 2 processes"]),
        ({"actor_gpus": [-1, 0]}, ["actor_gpus", "-1"]),
        ({"actor_gpus": [0, 1, 1, 2]}, ["actor_gpus", "rank 1", "twice"]),
        ({"actor_gpus": [1, 0]}, ["actor_gpus", "[0, 1]", "ascending"]),
        ({"actor_gpus": []}, ["actor_gpus", "empty"]),
        ({"critic_gpus": [0, 1]}, ["critic_gpus", "actor_gpus"]),
        ({"actor_gpu": [0]}, ["actor_gpu ", "did you mean actor_gpus?"]),
    ],
)
def test_ranks_that_do_not_fit_are_named(resources: dict[str, list[int]], words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        pools_from_resources(resources, 4)
    for word in words:
        assert word in str(caught.value)


def test_the_world_size_that_is_wanted() -> None:
    assert wanted_world_size(load_config(None)) == 1
    assert wanted_world_size(load_config(None, ["actor.mesh=t2p2"])) == 4
    assert wanted_world_size(load_config(None, ["actor.mesh=t2p2d3"])) == 12
    both = ["resources.actor_gpus=[0,1]", "resources.critic_gpus=[2]"]
    assert wanted_world_size(load_config(None, both)) == 3
    assert wanted_world_size(load_config(None, both), use_resources=False) == 1
    assert wanted_world_size(load_config(None, [*both, "run.world_size=8"])) == 8
    with pytest.raises(ConfigError, match="run.world_size is 0"):
        wanted_world_size(load_config(None, ["run.world_size=0"]))

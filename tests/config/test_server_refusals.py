"""What `validate` refuses of rollout servers."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from refusing import check, refused

SERVER = "rollout.engine=server"
ONE = "rollout.servers=['http://127.0.0.1:8000']"
LAUNCH = "rollout.launch.replicas=2"


def test_what_is_right_becomes_a_plan(made: Path) -> None:
    """Servers have no ranks of the run's; every rank trains."""
    for ways in ([ONE], [LAUNCH], [LAUNCH, "rollout.engine_args.block_size=16"]):
        plan = check(made, SERVER, *ways, "actor.mesh=t2p2")
        assert plan.rollout_ranks == () and plan.pools == ((0, 1, 2, 3),)
        assert plan.replica.size == 1
    plan = check(made, SERVER, LAUNCH, "rollout.launch.tensor_parallel_size=2")
    assert plan.replica.tp == 2
    plan = check(made, SERVER, ONE, "rollout.tensor_parallel_size=2")
    assert plan.replica.tp == 2 and plan.rollout_ranks == ()


REFUSALS = {
    "none": (["no server is named", "rollout.servers_file"], [SERVER]),
    "two": (["rollout.servers and rollout.launch.replicas are given"], [SERVER, ONE, LAUNCH]),
    "engine": (["rollout.servers is given", "rollout.engine is vllm"], [ONE]),
    "address": (
        ["rollout.servers[0] cannot be read", "http://host:port"],
        [SERVER, "rollout.servers=[localhost]"],
    ),
    "key": (
        ["rollout.servers[0] is not on this machine", "MEGARL_SERVER_API_KEY"],
        [SERVER, "rollout.servers=['http://node7:8000']"],
    ),
    "ranks": (
        ["resources.rollout_gpus", "leave the key out"],
        [SERVER, LAUNCH, "resources.actor_gpus=[0,1]", "resources.rollout_gpus=[2,3]"],
    ),
    "arguments": (
        ["rollout.engine_args is given", "servers that run already"],
        [SERVER, ONE, "rollout.engine_args.block_size=16"],
    ),
    "own arguments": (
        ["rollout.engine_args.port", "leave it out"],
        [SERVER, LAUNCH, "rollout.engine_args.port=9"],
    ),
    "unknown arguments": (
        ["rollout.engine_args.tool_call_parse", "did you mean tool_call_parser?"],
        [SERVER, LAUNCH, "rollout.engine_args.tool_call_parse=hermes"],
    ),
    "sizes": (
        ["rollout.launch.tensor_parallel_size is 4", "rollout.tensor_parallel_size 2", "one of"],
        [
            SERVER,
            LAUNCH,
            "rollout.launch.tensor_parallel_size=4",
            "rollout.tensor_parallel_size=2",
        ],
    ),
    "size of others": (
        ["rollout.launch.tensor_parallel_size is given without"],
        [SERVER, ONE, "rollout.launch.tensor_parallel_size=2"],
    ),
    "file": (
        ["rollout.servers_file", "nowhere", "No such file"],
        [SERVER, "rollout.servers_file=nowhere"],
    ),
    "alias": (
        ["weight_sync.alias is true", "servers have weights of their own"],
        [SERVER, ONE, "weight_sync.alias=true"],
    ),
    "sleep": (
        ["enable_sleep_mode", "set it to false"],
        [SERVER, ONE, "rollout.enable_sleep_mode=true"],
    ),
    "partial": (
        ["rollout.partial_rollout is true", "max_staleness is 0"],
        [SERVER, ONE, "rollout.partial_rollout=true"],
    ),
    "stale engines": (
        ["rollout.max_staleness is 2", "rollout.engine is vllm", "only servers"],
        ["rollout.max_staleness=2"],
    ),
    "stale as fresh": (
        ["rollout.max_staleness is 1", "rollout_is is null", "decoupled PPO"],
        [SERVER, ONE, "rollout.max_staleness=1"],
    ),
    "stale refills": (
        ["rollout.max_staleness is 1", "filter_groups"],
        [
            SERVER,
            ONE,
            "rollout.max_staleness=1",
            "algorithm.rollout_is=token",
            "algorithm.adv_estimator=grpo",
            "data.n_samples_per_prompt=4",
            "algorithm.filter_groups.enable=true",
        ],
    ),
    "stale greedy": (
        ["rollout.max_staleness is 1", "remax", "greedy answers of the same weights"],
        [
            SERVER,
            ONE,
            "rollout.max_staleness=1",
            "algorithm.rollout_is=token",
            "algorithm.adv_estimator=remax",
        ],
    ),
    "numbers": (["rollout.client.timeout_s", "0"], [SERVER, ONE, "rollout.client.timeout_s=0"]),
}


@pytest.mark.parametrize(("words", "overrides"), REFUSALS.values(), ids=REFUSALS.keys())
def test_refusals(
    words: list[str], overrides: list[str], made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MEGARL_SERVER_API_KEY", raising=False)
    refused(words, made, *overrides)


def test_the_key_opens_other_machines(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEGARL_SERVER_API_KEY", "secret")
    check(made, SERVER, "rollout.servers=['http://node7:8000']")


def test_without_aiohttp(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    hidden = lambda name, *rest: None if name == "aiohttp" else found(name, *rest)  # noqa: E731
    monkeypatch.setattr(importlib.util, "find_spec", hidden)
    refused(["aiohttp is not installed", "megarl[servers]"], made, SERVER, ONE)

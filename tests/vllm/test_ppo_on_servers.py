"""The whole loop on real vLLM servers: two trainer ranks, two servers beside them.

Proven: a run on servers is the run on engines of its own (same samples, same losses); a server that
is killed with samples on it costs no sample, is left out of the next sync, and comes back with the
weights of the one after. Not shown: several nodes, GPUs.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import jobs_servers as jobs
import pytest
from cluster import Cluster
from fixed_rollouts import NUM_PROMPTS, SAMPLES, fixed_config, write_fixed_rollouts
from jobs_train import train_run
from parts import RoleSpec
from tiny_models import TinyModels
from vllm_server import Servers, VllmServer

from megarl.config.schema import Config
from megarl.mesh.layout import MeshLayout

pytestmark = [pytest.mark.dist, pytest.mark.vllm]
ACTOR = RoleSpec((0, 1), MeshLayout(tp=2))
FAMILY = "llama"


def config_of(folder: Path, name: str) -> Config:
    """Two steps of GRPO on the fixed prompts."""
    config = fixed_config(folder, folder / name)
    config.run.steps, config.algorithm.adv_estimator = 2, "grpo"
    config.algorithm.kl_coef = 0.0
    config.rollout.engine, config.rollout.engine_args = "vllm", {}
    config.rollout.kv_cache_megabytes, config.rollout.max_num_batched_tokens = 16, 512
    config.rollout.temperature = 0.9
    config.weight_sync.canary = True
    return config


def server_config(folder: Path, name: str, running: list[VllmServer]) -> Config:
    """The same on servers that are listed in a file."""
    listed = folder / f"{name}.servers"
    listed.write_text("".join(f"{server.url}\n" for server in running))
    config = config_of(folder, name)
    config.rollout.engine, config.rollout.servers_file = "server", str(listed)
    config.rollout.client.timeout_s, config.rollout.client.patience_s = 60, 30
    return config


@pytest.fixture(scope="module")
def running(servers: Servers, tiny: TinyModels) -> Iterator[list[VllmServer]]:
    """Two servers with random weights."""
    found = [servers.start(tiny(FAMILY)) for _ in range(2)]
    for server in found:
        server.wait_until_ready()
    yield found


def test_servers_make_the_run_that_engines_make(
    cluster: Cluster, tiny: TinyModels, running: list[VllmServer], tmp_path: Path
) -> None:
    write_fixed_rollouts(tmp_path)
    path = tiny(FAMILY)
    config = server_config(tmp_path, "served", running)
    served = cluster.run(2, jobs.train_on_servers, config, path, ACTOR)[0]
    config = config_of(tmp_path, "own")
    own = cluster.run(2, train_run, config, path, ACTOR, None, None, 1)[0]
    for step in (1, 2):
        ours, theirs = served.metrics[step], own[step]
        assert ours["tokens/response"] == theirs["tokens/response"]
        for name in ("reward_mean", "reward_std", "actor/grad_norm"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-4)
        for name in ("actor/pg_loss", "actor/entropy"):
            assert ours[name] == pytest.approx(theirs[name], abs=1e-5)
        assert ours["train_rollout_logprob_abs_diff/max"] < 1e-4
        assert ours["rollout/servers"] == 2 and ours["rollout/retries"] == 0
        assert ours["reshard/canary_diff"] < 1e-4 < ours["reshard/canary_rollout_change"]
    assert served.metrics[2]["run/weight_version"] == 3
    assert [server.version.partition(".")[2] for server in running] == ["3", "3"]


@pytest.mark.parametrize("where", ["batch", pytest.param("sync", marks=pytest.mark.slow)])
def test_a_server_that_is_killed_costs_nothing(
    where: str,
    cluster: Cluster,
    tiny: TinyModels,
    servers: Servers,
    running: list[VllmServer],
    tmp_path: Path,
) -> None:
    """In the middle of a batch, or of a weight update; it is back for the last step."""
    write_fixed_rollouts(tmp_path)
    path = tiny(FAMILY)
    config = server_config(tmp_path, "killed", running)
    config.run.steps = 4
    pids = tuple(running[0].pids())
    moments = jobs.Moments(tmp_path, kill_in_step=2, kill_in=where, wait_before_step=4, pids=pids)
    with moments.when_left(lambda: servers.restart(running[0], path)) as restarted:
        found = cluster.run(2, jobs.train_on_servers, config, path, ACTOR, moments)[0]
    running[0] = restarted()
    steps = found.metrics
    assert [steps[step]["rollout/servers"] for step in (1, 3, 4)] == [2, 1, 2]
    assert steps[2]["rollout/retries"] > 0 or where == "sync"
    for step in (1, 2, 3, 4):
        assert sorted(found.rows[step]) == list(range(NUM_PROMPTS * SAMPLES))
        assert set(found.rows[step].values()) == {step}  # the weights that made each sample
    assert [server.version.partition(".")[2] for server in running] == ["5", "5"]


@pytest.mark.parametrize(
    "partial", [pytest.param(False, marks=pytest.mark.slow), True], ids=["whole", "partial"]
)
def test_generation_goes_on_while_the_trainer_learns(
    partial: bool, cluster: Cluster, tiny: TinyModels, running: list[VllmServer], tmp_path: Path
) -> None:
    """Each place of the order is learned once, from weights that are at most one sync older."""
    write_fixed_rollouts(tmp_path)
    config = server_config(tmp_path, "ahead", running)
    config.run.steps, config.data.rollout_batch_size = 5, 6
    config.data.max_response_length = 24
    config.rollout.max_staleness, config.rollout.partial_rollout = 1, partial
    config.algorithm.rollout_is = "token"
    found = cluster.run(2, jobs.train_on_servers, config, tiny(FAMILY), ACTOR)[0]
    lags = []
    for step in range(1, 6):
        metrics = found.metrics[step]
        assert metrics["async/staleness_max"] <= 1 and metrics["async/groups_dropped"] == 0
        assert metrics["tokens/response"] > 0 and metrics["actor/grad_norm"] > 0
        assert metrics["async/gain"] > 0 and metrics["rollout/retries"] == 0
        lags.append(metrics["async/staleness_mean"])
        diffs = metrics["train_rollout_logprob_abs_diff/max"]
        assert diffs < 1e-4 or metrics["async/staleness_max"] == 1
    assert lags[0] == 0 and max(lags) > 0
    assert found.metrics[5]["run/weight_version"] == 6
    assert sorted(place for some in found.places.values() for place in some) == list(range(30))


@pytest.mark.slow
def test_a_run_that_is_ahead_goes_on(
    cluster: Cluster, tiny: TinyModels, running: list[VllmServer], tmp_path: Path
) -> None:
    """From its checkpoint: what was open is made again, nothing is lost or learned twice."""
    write_fixed_rollouts(tmp_path)
    config = server_config(tmp_path, "resumed", running)
    config.run.steps, config.data.rollout_batch_size = 6, 6
    config.rollout.max_staleness, config.rollout.partial_rollout = 2, True
    config.algorithm.rollout_is, config.checkpoint.save_interval = "token", 1
    path = tiny(FAMILY)
    before = cluster.run(2, jobs.train_on_servers, config, path, ACTOR, None, 4)[0].places
    after = cluster.run(2, jobs.train_on_servers, config, path, ACTOR)[0].places
    assert sorted(before) == [1, 2, 3] and sorted(after) == [4, 5, 6]
    places = [place for found in (before, after) for some in found.values() for place in some]
    assert sorted(places) == list(range(36))

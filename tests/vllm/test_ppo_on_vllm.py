"""The whole loop on real vLLM: four ranks, actor TP2 PP2, critic TP1 PP2 DP2, two replicas of TP2.

Proven: an fp32 actor trains on rollouts of an fp32 and of a bf16 vLLM (so the cast on the wire is
real), every sync moves exactly the lower bound, the engines' log-probs agree as far as their types
allow, and a replica that missed a sync stops the run. That training raises the reward is for the
demo to show.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from cluster import Cluster
from fixed_rollouts import fixed_config, write_fixed_rollouts
from jobs_train import train_run, train_with_a_stale_replica
from parts import RoleSpec
from tiny_models import TinyModels

from megarl.config.schema import Config
from megarl.mesh.layout import MeshLayout

pytestmark = [pytest.mark.dist, pytest.mark.vllm]
RANKS = (0, 1, 2, 3)
ACTOR = RoleSpec(RANKS, MeshLayout(tp=2, pp=2))
CRITIC = RoleSpec(RANKS, MeshLayout(pp=2, dp=2))
LOGPROB_DIFF = {"float32": (1e-5, 1e-4), "bfloat16": (2e-2, 0.2)}
"""Mean and maximum, nats: rounding of the type in a model of four layers."""


def vllm_config(folder: Path, dtype: str) -> Config:
    """The fixed prompts, answered by vLLM."""
    write_fixed_rollouts(folder)
    config = fixed_config(folder, folder / "run")
    config.run.steps = 2
    config.rollout.engine, config.rollout.engine_args = "vllm", {}
    config.rollout.dtype, config.rollout.kv_cache_megabytes = dtype, 16
    config.rollout.temperature = 0.9
    config.rollout.max_num_batched_tokens = 512
    config.weight_sync.canary = True
    config.observe.logprob_diff_mean_limit = LOGPROB_DIFF[dtype][0]
    return config


@pytest.mark.parametrize("dtype", [pytest.param("float32", marks=pytest.mark.slow), "bfloat16"])
def test_train_on_vllm(dtype: str, cluster: Cluster, tiny: TinyModels, tmp_path: Path) -> None:
    config = vllm_config(tmp_path, dtype)
    metrics = cluster.run(4, train_run, config, tiny("llama"), ACTOR, CRITIC, ACTOR, 2)[0]
    mean, largest = LOGPROB_DIFF[dtype]
    assert sorted(metrics) == [1, 2]
    for step in metrics.values():
        assert step["reshard/bytes_received"] == step["reshard/bytes_lower_bound"] > 0
        assert step["train_rollout_logprob_abs_diff/mean"] < mean
        assert step["train_rollout_logprob_abs_diff/max"] < largest
        assert step["reshard/regions_verified"] > 0
        assert step["actor/grad_norm"] > 0 and step["critic/grad_norm"] > 0
    assert metrics[2]["run/weight_version"] == 3
    if dtype == "bfloat16":  # or nothing was cast
        assert metrics[2]["train_rollout_logprob_abs_diff/max"] > 1e-4


@pytest.mark.slow
def test_a_replica_that_missed_a_sync_stops_the_run(
    cluster: Cluster, tiny: TinyModels, tmp_path: Path
) -> None:
    config = vllm_config(tmp_path, "float32")
    errors = cluster.run(4, train_with_a_stale_replica, config, tiny("llama"), ACTOR, 2)
    for error in errors:
        assert "weight version 1" in error and "the actor is at 2" in error

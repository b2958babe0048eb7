"""`megarl train` from a config file to an exported model, on two processes of its own.

Shown: a mixture of experts, dealt over the ranks on both sides, trains, syncs and is exported; a
run whose rollout weights are views of the actor's gives the rollouts of one that copies them; a run
that starts its own servers gives the same rollouts again, and ends them.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from fixed_rollouts import write_fixed_rollouts
from safetensors.torch import load_file
from tiny_models import TinyModels

from megarl.observe.metrics_file import read_metrics

pytestmark = [pytest.mark.vllm, pytest.mark.slow]


def train(folder: Path, model: str, **sections: dict[str, Any]) -> dict[int, dict[str, float]]:
    """Two steps of GRPO on two ranks; step -> metrics."""
    write_fixed_rollouts(folder)
    config: dict[str, dict[str, Any]] = {
        "run": {"dir": str(folder / "run"), "steps": 2, "world_size": 2},
        "actor": {"model": {"path": model}, "optimizer": {"lr": 3e-3}},
        "data": {
            "train_path": str(folder / "prompts.jsonl"), "rollout_batch_size": 12,
            "n_samples_per_prompt": 2, "max_prompt_length": 8, "max_response_length": 24,
        },
        "algorithm": {"adv_estimator": "grpo", "global_batch_size": 24},
        "reward": {"function": str(folder / "reward.py") + ":reward"},
        "rollout": {"tensor_parallel_size": 2, "kv_cache_megabytes": 16},
        "observe": {"progress": False},
    }  # fmt: skip
    for name, section in sections.items():
        config[name] = config.get(name, {}) | section
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    done = subprocess.run(
        [sys.executable, "-m", "megarl.cli.main", "train", str(path)],
        env=os.environ | {"TORCHDYNAMO_DISABLE": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return read_metrics(folder / "run" / "metrics.jsonl")


def test_experts_dealt_over_ranks(tiny: TinyModels, tmp_path: Path) -> None:
    mesh = {"mesh": "t2e2+sp"}
    metrics = train(
        tmp_path,
        tiny("qwen3-moe"),
        actor={"model": {"path": tiny("qwen3-moe")}, "optimizer": {"lr": 3e-3}} | mesh,
        rollout={"tensor_parallel_size": 2, "enable_expert_parallel": True},
    )
    for step in (1, 2):
        found = metrics[step]
        assert found["reshard/bytes_received"] == found["reshard/bytes_lower_bound"]
        assert found["train_rollout_logprob_abs_diff/max"] < 1e-4
        assert found["actor/grad_norm"] > 0
    before = load_file(f"{tiny('qwen3-moe')}/model.safetensors")
    after = load_file(tmp_path / "run/model/model.safetensors")
    assert {n: t.shape for n, t in after.items()} == {n: t.shape for n, t in before.items()}
    experts = [name for name in after if ".experts." in name]
    assert len(experts) == 4 * 4 * 3
    assert all(not torch.equal(after[name], before[name]) for name in experts)


def test_aliases_change_no_rollout(tiny: TinyModels, tmp_path: Path) -> None:
    found = {}
    for alias in (False, True):
        folder = tmp_path / str(alias)
        folder.mkdir()
        mesh = {"model": {"path": tiny("llama")}, "optimizer": {"lr": 3e-3}, "mesh": "t2"}
        found[alias] = train(folder, tiny("llama"), actor=mesh, weight_sync={"alias": alias})
    copied, shared = found[False][2], found[True][2]
    assert copied["reshard/bytes_aliased"] == 0 == shared["reshard/bytes_local"]
    assert shared["reshard/bytes_aliased"] == copied["reshard/bytes_local"] > 0
    assert shared["reward_mean"] == copied["reward_mean"]
    assert shared["train_rollout_logprob_abs_diff/max"] < 1e-4


def test_servers_that_the_run_starts(tiny: TinyModels, tmp_path: Path) -> None:
    found = {}
    for engine in ("vllm", "server"):
        folder = tmp_path / engine
        folder.mkdir()
        rollout = {"engine": engine, "kv_cache_megabytes": 16, "max_num_batched_tokens": 512}
        rollout |= {"launch": {"replicas": 2}} if engine == "server" else {}
        mesh = {"model": {"path": tiny("llama")}, "optimizer": {"lr": 3e-3}, "mesh": "t2"}
        found[engine] = train(folder, tiny("llama"), actor=mesh, rollout=rollout)
    for step in (1, 2):
        own, served = found["vllm"][step], found["server"][step]
        assert served["tokens/response"] == own["tokens/response"]
        assert served["reward_mean"] == pytest.approx(own["reward_mean"], abs=1e-6)
        assert served["actor/grad_norm"] == pytest.approx(own["actor/grad_norm"], rel=1e-4)
        assert served["rollout/servers"] == 2
    run = tmp_path / "server/run"
    assert sorted(log.name for log in (run / "servers").iterdir()) == ["server0.log", "server1.log"]
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            assert str(run / "servers") not in (process / "cmdline").read_text()
    # Where servers are is told to nobody.
    for file in run.rglob("*"):
        if file.suffix in (".log", ".jsonl", ".txt") and "servers" not in file.parts:
            assert "http://" not in file.read_text(), file

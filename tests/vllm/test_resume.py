"""A run that was killed and started again ends where an undisturbed one ends, bit for bit."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from fixed_rollouts import write_fixed_rollouts
from tiny_models import TinyModels

from megarl.observe.metrics_file import read_metrics

pytestmark = pytest.mark.vllm
TIMES = ("timing_s/", "perf/", "reshard/seconds", "eval/seconds")
"""Metrics that no two runs have in common."""
STEPS = 4


def write_config(folder: Path, model: str, **checkpoint: Any) -> Path:
    """PPO with a critic, an adaptive KL coefficient and evaluations; a checkpoint a step."""
    write_fixed_rollouts(folder)
    prompts = str(folder / "prompts.jsonl")
    config: dict[str, dict[str, Any]] = {
        "run": {"dir": str(folder / "run"), "steps": STEPS, "world_size": 2, "eval_interval": 2},
        "actor": {"model": {"path": model}, "optimizer": {"lr": 3e-3}, "mesh": "p2"},
        "critic": {"optimizer": {"lr": 3e-3}, "mesh": "p2"},
        "data": {
            "train_path": prompts, "eval_path": prompts, "rollout_batch_size": 8,
            "max_prompt_length": 8, "max_response_length": 16,
        },
        "algorithm": {
            "global_batch_size": 4, "kl_coef": 0.05,
            "kl_ctrl": {"type": "adaptive", "target_kl": 0.01, "horizon": 100},
        },
        "reward": {"function": str(folder / "reward.py") + ":reward"},
        "rollout": {"tensor_parallel_size": 2, "kv_cache_megabytes": 16},
        "checkpoint": {"save_interval": 1} | checkpoint,
        "observe": {"progress": False},
    }  # fmt: skip
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def start(config: Path, log: Path) -> subprocess.Popen[bytes]:
    """`megarl train` on two ranks."""
    with log.open("ab") as out:
        return subprocess.Popen(
            [sys.executable, "-m", "megarl.cli.main", "train", str(config)],
            env=os.environ | {"TORCHDYNAMO_DISABLE": "1"},
            stdout=out,
            stderr=subprocess.STDOUT,
        )


def finish(config: Path, log: Path) -> None:
    """Run to the end."""
    assert start(config, log).wait(timeout=280) == 0, log.read_text()[-3000:]


def outcome(folder: Path) -> tuple[str, dict[int, dict[str, float]]]:
    """Digest of the exported weights, and all metrics that a repetition must have."""
    weights = (folder / "run/model/model.safetensors").read_bytes()
    metrics = read_metrics(folder / "run/metrics.jsonl")
    kept = {
        step: {name: value for name, value in row.items() if not name.startswith(TIMES)}
        for step, row in metrics.items()
    }
    return hashlib.sha256(weights).hexdigest(), kept


def wait_for(moment: str, launcher: subprocess.Popen[bytes], folder: Path) -> None:
    """Until rank 0's log has it."""
    log, deadline = folder / "run/logs/rank_0.log", time.monotonic() + 200
    while moment not in (log.read_text() if log.exists() else ""):
        assert launcher.poll() is None and time.monotonic() < deadline, moment
        time.sleep(0.005)


def children(launcher: subprocess.Popen[bytes]) -> list[int]:
    """Processes of the ranks."""
    file = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children")
    return [int(pid) for pid in file.read_text().split()]


def kill_a_rank(launcher: subprocess.Popen[bytes], folder: Path, dice: random.Random) -> None:
    """kill -9 of one of the two, at some moment after a checkpoint."""
    step = dice.randrange(1, STEPS)
    marks = dice.choice(["generate", "update_actor", "sync_weights", "save_checkpoint"])
    wait_for(f"{marks}, step {step + 1}", launcher, folder)
    time.sleep(dice.random() * 0.1)
    os.kill(dice.choice(children(launcher)), signal.SIGKILL)
    assert launcher.wait(timeout=60) != 0


@pytest.fixture(scope="module")
def whole(tiny: TinyModels, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What an undisturbed run gives."""
    folder = tmp_path_factory.mktemp("whole")
    finish(write_config(folder, tiny("llama")), folder / "log")
    return outcome(folder)


@pytest.mark.parametrize(
    "seed",
    [
        pytest.param(0, marks=pytest.mark.slow),
        *(pytest.param(seed, marks=pytest.mark.long) for seed in range(1, 6)),
    ],
)
def test_a_kill_changes_nothing(seed: int, whole: Any, tiny: TinyModels, tmp_path: Path) -> None:
    config, log = write_config(tmp_path, tiny("llama")), tmp_path / "log"
    kill_a_rank(start(config, log), tmp_path, random.Random(seed))
    finish(config, log)
    weights, metrics = outcome(tmp_path)
    assert weights == whole[0]
    assert metrics == whole[1]
    assert not list((tmp_path / "run/checkpoints").glob("*.partial"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "interval"), [(signal.SIGTERM, 3), (signal.SIGUSR1, 0)], ids=["SIGTERM", "SIGUSR1"]
)
def test_a_signal_saves_and_asks_for_another_start(
    number: signal.Signals, interval: int, whole: Any, tiny: TinyModels, tmp_path: Path
) -> None:
    """At the end of the step in which it came; also where no checkpoints are kept by themselves."""
    config = write_config(tmp_path, tiny("llama"), save_interval=interval, async_save=True)
    log, marker = tmp_path / "log", tmp_path / "run/requeue"
    launcher = start(config, log)
    wait_for("generate, step 2", launcher, tmp_path)
    # As a batch system does it: to every process, of which one hands it on as well.
    for pid in (*children(launcher), launcher.pid):
        os.kill(pid, number)
    assert launcher.wait(timeout=100) == 75
    assert marker.read_text() == "2\n"
    latest = tmp_path / "run/checkpoints/latest_checkpointed_iteration.txt"
    assert latest.read_text() == "2\n"
    finish(config, log)
    assert outcome(tmp_path) == whole
    assert not marker.exists()

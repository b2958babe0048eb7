"""Reinforcement learning raises held-out accuracy, with real rollouts and real updates."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(*words: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", *words], cwd=ROOT, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_grpo_raises_held_out_accuracy(tmp_path: Path) -> None:
    """The demo's model after a part of its pretraining, and seven steps of 256 samples."""
    assets, base, out = (tmp_path / name for name in ("assets", "base", "grpo"))
    run("examples.demo_assets", "--dir", str(assets), "--seed", "0")
    quiet = ["observe.progress=false", "observe.use_tensorboard=false"]
    run(
        "megarl.cli.main", "sft", "configs/demo/pretrain.yaml", f"run.dir={base}",
        f"actor.model.path={assets}", f"data.train_path={assets}/texts.jsonl", "run.steps=400",
        *quiet,
    )  # fmt: skip
    run(
        "megarl.cli.main", "train", "configs/demo/grpo.yaml", f"run.dir={out}",
        f"actor.model.path={base}/model", f"data.train_path={assets}/train.jsonl",
        f"data.eval_path={assets}/heldout.jsonl", "run.steps=7", "run.eval_interval=0",
        "data.rollout_batch_size=64", "algorithm.global_batch_size=128", *quiet,
    )  # fmt: skip
    found = json.loads((out / "summary.json").read_text())
    assert found["accuracy_last"] >= found["accuracy_first"] + 0.1, found["accuracy"]
    assert (out / "curves.png").stat().st_size > 10_000

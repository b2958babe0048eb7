"""The whole demos, as `make demo` and `make demo-smollm2` run them, in their time and memory."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
pytestmark = [pytest.mark.long, pytest.mark.timeout(2400)]


def run_demo(folder: Path, module: str, seed: int) -> tuple[float, dict[str, float]]:
    """Minutes it took, and the run's summary."""
    command = [sys.executable, "-m", module, "--dir", str(folder), "--seed", str(seed)]
    started = time.monotonic()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    minutes = (time.monotonic() - started) / 60
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    run = "train" if "smollm2" in module else "ppo"
    return minutes, json.loads((folder / run / "summary.json").read_text())


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_demo(seed: int, tmp_path: Path) -> None:
    minutes, summary = run_demo(tmp_path / "demo", "examples.demo", seed)
    assert summary["accuracy_last"] - summary["accuracy_first"] >= 0.2
    assert minutes <= 10
    assert summary["peak_memory_gib"] <= 8


def test_demo_smollm2(tmp_path: Path) -> None:
    minutes, summary = run_demo(tmp_path / "demo", "examples.demo_smollm2", 0)
    assert summary["accuracy_last"] - summary["accuracy_first"] >= 0.4
    assert minutes <= 20
    assert summary["peak_memory_gib"] <= 12


@pytest.mark.parametrize("seed", [0, 1])
def test_four_stages(seed: int, tmp_path: Path) -> None:
    """Each stage's metric, on data that it did not learn, is higher at its end."""
    file = str(ROOT / "configs/pipelines/demo.yaml")
    command = [sys.executable, "-m", "megarl.cli.main", "pipeline", file, f"seed={seed}"]
    started = time.monotonic()
    done = subprocess.run(
        [*command, "--dir", str(tmp_path / "out")], cwd=ROOT, capture_output=True, text=True
    )
    minutes = (time.monotonic() - started) / 60
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    stages = json.loads((tmp_path / "out/report.json").read_text())["stages"]
    values = {one["stage"]: one["values"] for one in stages if one["command"] != "run"}
    assert list(values) == ["pretrain", "sft", "reward", "ppo"]
    for stage, found in values.items():
        assert found[-1] > found[0] + 0.02, (stage, found)
    assert minutes <= 15


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_algorithms(seed: int, tmp_path: Path) -> None:
    """Each raises held-out accuracy from the same start, and keeps its curves."""
    file = str(ROOT / "configs/pipelines/algorithms.yaml")
    command = [sys.executable, "-m", "megarl.cli.main", "pipeline", file, f"seed={seed}"]
    done = subprocess.run(
        [*command, "--dir", str(tmp_path)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    stages = json.loads((tmp_path / "report.json").read_text())["stages"]
    values = {one["stage"]: one["values"] for one in stages if one["command"] == "train"}
    assert {"ppo", "grpo", "dapo", "rloo", "reinforce_plus_plus"} <= set(values)
    for algorithm, found in values.items():
        assert found[-1] >= found[0] + 0.15, (algorithm, found)
        assert (tmp_path / algorithm / "curves.png").stat().st_size > 10_000

"""`megarl bench step` on a small model: every figure is there, and phases make up the step."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.vllm]

SMALL = ["--hidden", "256", "--layers", "4", "--ffn", "688", "--samples", "16", "--rounds", "3"]


@pytest.mark.parametrize("arguments", [["--estimator", "gae"], ["--dtype", "bfloat16"]])
def test_figures(arguments: list[str], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "megarl.cli.main", "bench", "step", *SMALL, *arguments]
    done = subprocess.run(
        [*command, "--json", str(tmp_path / "figures.json")],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    figures = json.loads((tmp_path / "figures.json").read_text())
    with_critic = "gae" in arguments
    for phase in ("update_critic", "values", "reference"):
        assert (figures.get(f"timing_s/{phase}", 0.0) > 1e-3) == with_critic, phase
    for phase in ("generate", "update_actor", "sync_weights"):
        assert figures[f"timing_s/{phase}"] > 1e-3, phase
    assert 0.97 < figures["share of the wall time in phases"] <= 1.001
    for ratio in ("bare Megatron-Core / update", "bare vLLM / generate"):
        assert 0.1 < figures[ratio] < 3.0, ratio
    assert 0 < figures["update, share of the matmul peak"] < 1
    assert "bare vLLM / generate" in done.stdout

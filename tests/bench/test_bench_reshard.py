"""`megarl bench reshard` at its smallest: every way runs and moves what it says."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from cluster import process_env

from megarl.cli.main import main

WAYS = [
    "this engine",
    "this engine, digests",
    "this engine, in sequence",
    "Megatron-Core's resharding*",
    "gather, load_weights",
    "packed broadcast, load_weights",
    "raw exchange",
    "floor",
]


@pytest.mark.slow
@pytest.mark.vllm
def test_figures(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "megarl.cli.main", "bench", "reshard", "--rounds", "3"]
    command += ["--hidden", "256", "--ffn", "384", "--layers", "4", "--vocab", "1000"]
    command += ["--json", str(tmp_path / "figures.json"), "--png", str(tmp_path / "figures.png")]
    done = subprocess.run(command, env=process_env(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "figures.json").read_text())
    assert list(found["ways"]) == WAYS
    received = {name: way["received_bytes"] for name, way in found["ways"].items()}
    # TP2 x PP2 onto TP2: half of the shards is here; a gather brings all of the full tensors.
    assert received["this engine"] == received["Megatron-Core's resharding*"]
    assert 2.5 * received["this engine"] < received["gather, load_weights"]
    assert received["gather, load_weights"] < received["packed broadcast, load_weights"]
    assert found["beside"]["bytes received / lower bound"] == 1.0
    for way in found["ways"].values():
        assert len(way["seconds"]) == 3 and min(way["seconds"]) > 0
    assert (tmp_path / "figures.png").stat().st_size > 10_000
    assert "4 processes on one node, gloo" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--actor", "t3p2"], "--actor: tensor 3 x pipeline 2 x context 1 = 6 does not divide"),
        (["--hidden", "128"], "tensor-parallel size 2 does not divide num_query_groups 1"),
        (["--rollout-tp", "3"], "--rollout-tp 3 does not divide --ranks 4"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "reshard", *arguments]) == 2
    assert words in capsys.readouterr().err

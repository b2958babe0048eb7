"""`megarl bench advantages` at its smallest: every estimator is timed, and its memory counted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from megarl.algorithms.advantages import estimator_names
from megarl.cli.main import main


@pytest.mark.parametrize("options", [[], ["--holes", "--dtype", "float64"]])
def test_figures(options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    figures, picture = tmp_path / "figures.json", tmp_path / "figures.png"
    files = ["--json", str(figures), "--png", str(picture)]
    small = ["--responses", "16", "--length", "64", "--rounds", "2", "--threads", "1"]
    assert main(["bench", "advantages", *small, *options, *files]) == 0
    found = json.loads(figures.read_text())
    assert list(found["estimators"]) == list(estimator_names())
    for entry in found["estimators"].values():
        assert len(entry["seconds"]) == 2 and min(entry["seconds"]) > 0
        assert entry["memory_batches"] >= 1
    assert picture.stat().st_size > 10_000
    printed = capsys.readouterr().out
    assert "16 responses of up to 64 tokens" in printed and "memory, in batches" in printed


def test_large_batches_are_held_a_few_times_only(tmp_path: Path) -> None:
    """32 million numbers: what an estimator makes is its results and little else."""
    figures = tmp_path / "figures.json"
    sizes = ["--responses", "1024", "--length", "4096", "--rounds", "1", "--threads", "1"]
    assert main(["bench", "advantages", *sizes, "--holes", "--json", str(figures)]) == 0
    found = json.loads(figures.read_text())["estimators"]
    assert {name for name, entry in found.items() if entry["memory_batches"] > 3} == set()


@pytest.mark.parametrize("words", [["--rounds", "0"], ["--length", "1"], ["--responses", "1"]])
def test_sizes_that_measure_nothing_are_refused(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "advantages", *words]) == 2
    assert f"{words[0]} is {words[1]}: give {int(words[1]) + 1} or more" in capsys.readouterr().err

"""`megarl bench pack` at its smallest: every way runs, does its work, and is written down."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from megarl import native
from megarl.cli.main import main

CASES = ("large regions", "64 KB slices", "odd sizes", "fp32 -> bf16")
MOVES = ("pack", "unpack", "copy", "pack, digests", "digests alone")


@pytest.mark.skipif(not native.available(), reason="megarl_cpp is not built")
def test_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    figures, picture = tmp_path / "figures.json", tmp_path / "figures.png"
    files = ["--json", str(figures), "--png", str(picture)]
    small = ["--megabytes", "2", "--rounds", "2", "--threads", "2"]
    assert main(["bench", "pack", *small, *files]) == 0
    found = json.loads(figures.read_text())
    names = [f"{case}: {move}" for case in CASES for move in MOVES]
    plain = ["plain copy", "plain copy, one thread"][: 1 if torch.cuda.is_available() else 2]
    assert list(found["ways"]) == plain + names
    for way in found["ways"].values():
        assert len(way["seconds"]) == 2 and min(way["seconds"]) > 0
    traffic = {name: way["traffic_bytes"] for name, way in found["ways"].items()}
    assert traffic["plain copy"] == 2 * (2 << 20)
    # Regions of 8 MB do not fit 2 MB: there is one, read as fp32 and written as bf16.
    assert traffic["fp32 -> bf16: pack"] == 3 * (8 << 20)
    assert picture.stat().st_size > 10_000
    printed = capsys.readouterr().out
    assert "to plain copy" in printed
    assert torch.cuda.is_available() or "no GPU figures" in printed


@pytest.mark.parametrize("words", [["--rounds", "1"], ["--megabytes", "0"]])
def test_sizes_that_measure_nothing_are_refused(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "pack", *words]) == 2
    assert f"{words[0]} is {words[1]}: give 2 or more" in capsys.readouterr().err

"""`megarl bench rollout` at its smallest: both clients, the stub, the updates; what is written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from megarl.bench import rollout
from megarl.cli.main import main


@pytest.mark.slow
@pytest.mark.vllm
def test_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    figures, picture = tmp_path / "figures.json", tmp_path / "figures.png"
    small = ["--requests", "24", "--concurrency", "8", "--rounds", "2", "--many", "2000"]
    assert main(["bench", "rollout", *small, "--json", str(figures), "--png", str(picture)]) == 0
    found = json.loads(figures.read_text())
    assert all(len(values) == 2 and min(values) > 0 for values in found["seconds"].values())
    numbers = found["figures"]
    ours, theirs = numbers["requests/s, this client"], numbers["requests/s, vLLM's"]
    assert numbers["this client / vLLM's"] == pytest.approx(ours / theirs)
    assert numbers["tokens/s, this client, at most"] == pytest.approx(32 * ours)
    assert numbers["2000 in flight, MiB"] < 1024
    assert picture.stat().st_size > 10_000
    assert "weight update, samples under way" in capsys.readouterr().out


def test_the_client_alone() -> None:
    """Against the stub; a delay of the server's is not the client's."""
    with rollout.stub() as port:
        at_once = rollout.ask(port, 40, 0)
        delayed = rollout.ask(port, 40, 30)
    assert 0 < at_once["p50"] <= at_once["p99"] <= at_once["seconds"] < 5
    assert delayed["seconds"] > 0.3 and delayed["p50"] < 5


@pytest.mark.parametrize("words", [["--rounds", "1"], ["--requests", "0"]])
def test_sizes_that_measure_nothing_are_refused(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "rollout", *words]) == 2
    assert f"{words[0]} is {words[1]}: give more" in capsys.readouterr().err

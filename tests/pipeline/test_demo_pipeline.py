"""The demo of all four stages, with few steps: what each leaves is what the next starts from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from megarl.cli.main import main

FILE = Path(__file__).parents[2] / "configs/pipelines/demo.yaml"
STEPS = {"pretrain": 12, "sft": 8, "reward": 8, "ppo": 2}


@pytest.mark.long
@pytest.mark.timeout(400)
def test_each_stage_starts_from_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A stage's first evaluation is that of the model which the one before it wrote."""
    monkeypatch.chdir(FILE.parents[2])
    short = [f"{stage}.run.steps={steps}" for stage, steps in STEPS.items()]
    assert main(["pipeline", str(FILE), f"--dir={tmp_path}", *short]) == 0, capfd.readouterr().err
    report = json.loads((tmp_path / "report.json").read_text())
    found = {one["stage"]: one for one in report["stages"]}
    assert all(one["state"] == "done" for one in found.values())
    for stage, steps in STEPS.items():
        assert found[stage]["steps"][0] == 0 and found[stage]["steps"][-1] == steps
    for stage, before in (("sft", "pretrain"), ("reward", "sft"), ("ppo", "sft")):
        text = (tmp_path / stage / "config.yaml").read_text()
        assert f"path: {tmp_path / before / 'model'} " in text
    assert (tmp_path / "curves.png").stat().st_size > 10_000
    assert not list((tmp_path / "ppo/model").glob("*.jsonl")), "data travels with no model"

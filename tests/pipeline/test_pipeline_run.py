"""Stages are run once, in order; what was interrupted goes on, what differs is refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from fixed_rollouts import write_fixed_rollouts
from tiny_models import TinyModels

from megarl.cli.main import RUNS, main
from megarl.errors import ConfigError
from megarl.pipeline.commands import main as pipeline_main
from megarl.pipeline.records import Records

STAGE = """
import json, os, signal, sys, time
from pathlib import Path

name, folder = sys.argv[1], Path(sys.argv[2])
(folder / name).mkdir(parents=True, exist_ok=True)
with (folder / "order").open("a") as file:
    file.write(name + "\\n")
if name == "second" and (folder / "fail").exists():
    sys.exit(3)
if name == "second" and (folder / "wait").exists():
    signal.signal(signal.SIGUSR1, lambda *_: sys.exit(75))
    (folder / "waits").write_text("")
    time.sleep(60)
with (folder / name / "metrics.jsonl").open("w") as file:
    for step in range(1, 4):
        file.write(json.dumps({"step": step, "score": step / 4}) + "\\n")
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Two stages that write down that they ran."""
    (tmp_path / "stage.py").write_text(STAGE)
    stages = [
        {"name": name, "run": f"python {tmp_path}/stage.py {name} ${{dir}} ${{seed}}"}
        for name in ("first", "second")
    ]
    stages[1]["metric"] = "score"
    path = tmp_path / "two.yaml"
    path.write_text(yaml.safe_dump({"dir": str(tmp_path / "out"), "stages": stages}))
    (tmp_path / "out").mkdir()
    return path


def run(file: Path, *arguments: str) -> tuple[int, list[str]]:
    said: list[str] = []
    return pipeline_main([str(file), *arguments], tuple(RUNS), said.append), said


def order(file: Path) -> list[str]:
    return (file.parent / "out/order").read_text().split()


def test_each_stage_once(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = file.parent / "out"
    assert run(file)[0] == 0
    assert order(file) == ["first", "second"]
    report = json.loads((out / "report.json").read_text())
    first, second = report["stages"]
    assert (first["metric"], second["metric"]) == (None, "score")
    assert second["values"] == [0.25, 0.5, 0.75] and second["state"] == "done"
    assert "0.25" in capsys.readouterr().out
    assert (out / "report.txt").exists() and (out / "curves.png").stat().st_size > 5000
    status, said = run(file)
    assert status == 0 and order(file) == ["first", "second"]
    assert sum("done before" in line for line in said) == 2


def test_a_failure_ends_it_and_the_rest_goes_on(file: Path) -> None:
    (file.parent / "out/fail").touch()
    status, said = run(file)
    assert status == 3 and "failed with exit status 3" in said[-1]
    assert Records(file.parent / "out").read("second").state == "started"  # type: ignore[union-attr]
    (file.parent / "out/fail").unlink()
    assert run(file)[0] == 0
    assert order(file) == ["first", "second", "second"]


def test_other_settings_are_refused_with_the_difference(file: Path) -> None:
    assert run(file)[0] == 0
    with pytest.raises(ConfigError, match=r"stage first was done with other settings.*run was"):
        run(file, "seed=4")
    assert order(file) == ["first", "second"]


def test_the_dry_run_starts_nothing(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pipeline", str(file), "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "first (to do)" in shown and "stage.py second" in shown
    assert list((file.parent / "out").iterdir()) == []


@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGUSR1, 75), (signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGKILL, -9)],
)
def test_a_signal_reaches_the_stage(file: Path, number: signal.Signals, status: int) -> None:
    out = file.parent / "out"
    (out / "wait").touch()
    program = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from megarl.cli.main import main; sys.exit(main(sys.argv[1:]))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, "pipeline", str(file)], env=dict(os.environ)
    )
    deadline = time.monotonic() + 60
    while not (out / "waits").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.send_signal(number)
    assert process.wait(30) == status
    while any(Path(f"/proc/{child}").exists() for child in children):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    (out / "wait").unlink()
    assert run(file)[0] == 0
    assert order(file) == ["first", "second", "second"]


@pytest.mark.slow
@pytest.mark.dist
def test_fine_tuning_then_ppo(tiny: TinyModels, tmp_path: Path) -> None:
    """The stages of a real pipeline: a model is made, the next one starts from it."""
    write_fixed_rollouts(tmp_path)
    data = {"train_path": str(tmp_path / "prompts.jsonl"), "rollout_batch_size": 8}
    config = {
        "run": {"steps": 3},
        "actor": {"model": {"path": tiny("llama")}, "optimizer": {"lr": 3e-3}},
        "data": data
        | {"response_column": "label", "max_prompt_length": 8, "max_response_length": 8},
        "algorithm": {"global_batch_size": 8},
        "reward": {"function": str(tmp_path / "reward.py") + ":reward"},
        "rollout": {"engine": "transformers"},
        "observe": {"progress": False, "use_tensorboard": False},
    }
    (tmp_path / "one.yaml").write_text(yaml.safe_dump(config))
    stages = [
        {"name": "base", "command": "sft", "config": "one.yaml"},
        {
            "name": "ppo",
            "command": "train",
            "config": "one.yaml",
            "overrides": {"actor.model.path": "${base.model}"},
        },
    ]
    file = tmp_path / "two.yaml"
    file.write_text(yaml.safe_dump({"dir": str(tmp_path / "out"), "stages": stages}))
    assert run(file)[0] == 0
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert [len(stage["values"]) for stage in report["stages"]] == [3, 3]
    assert [stage["metric"] for stage in report["stages"]] == ["probability", "reward_mean"]
    assert report["summaries"]["ppo"]["steps"] == 3
    assert (tmp_path / "out/ppo/model/config.json").exists()
    with pytest.raises(ConfigError, match=r"stage ppo .* run.steps was 3 and is 4"):
        run(file, "ppo.run.steps=4")
    assert run(file, "ppo.run.timeout_s=99")[0] == 0

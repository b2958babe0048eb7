"""docs/environments.md: its class plays, its settings are accepted, its example learns."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from refusing import check, refused

from megarl.observe.metrics_file import read_metrics
from megarl.types import Prompt

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "environments.md").read_text()


def block(language: str) -> str:
    (found,) = re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)
    return str(found)


def test_the_class_plays() -> None:
    names: dict[str, object] = {}
    exec(block("python"), names)
    game = names["Calculator"](limit=50)  # type: ignore[operator]
    assert game.reset(Prompt(0, (1,), "2 + 3", "5", ""), 0) == ""
    assert game.step("2+3=").observation == " 5 " and not game.step("2+3=").done
    assert game.step("90 + 3=").observation == " 50 "
    assert game.step("x=").reward == -0.1
    assert game.step(" 5 ") == ("", 1.0, True) and game.step("6").reward == 0.0


def test_the_settings_are_accepted(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_environment.py").write_text(block("python"))
    monkeypatch.chdir(tmp_path)
    section = yaml.safe_load(block("yaml"))["environment"]
    kwargs = section.pop("kwargs")
    given = [f"environment.{name}={value}" for name, value in section.items()]
    given += [f"environment.kwargs.{name}={value}" for name, value in kwargs.items()]
    check(made, *given, "data.label_column=null")  # no reward function looks for labels
    wide = "rollout.tensor_parallel_size=2"
    refused(["a rollout replica has 2 ranks", "rollout.engine=server"], made, *given, wide)
    refused(["cannot be made", "limits"], made, *given, "environment.kwargs.limits=3")
    refused(["'guesing' is unknown", "guessing_game"], made, "environment.function=guesing")
    own = "environment.function=my_environment.py:Reply"
    refused(["have no method reset"], made, own)
    ahead = ["rollout.engine=server", "rollout.launch.replicas=1", "rollout.max_staleness=1"]
    words = ["rollout.max_staleness is 1", "not played ahead"]
    refused(words, made, *given, *ahead, "algorithm.rollout_is=token")


@pytest.mark.long
@pytest.mark.vllm
def test_the_example_learns(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "examples.guessing_game", "--dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    metrics = read_metrics(tmp_path / "run/metrics.jsonl")
    rewards = [metrics[step]["reward_mean"] for step in sorted(metrics) if step]
    assert rewards[0] < 0 and sum(rewards[-5:]) / 5 > 0.65
    # Of the four numbers the first guess is right for one, where all else is played well.
    assert metrics[80]["train_rollout_logprob_abs_diff/max"] < 1e-3

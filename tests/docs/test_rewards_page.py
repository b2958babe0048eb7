"""docs/rewards.md: its Python runs, and its table has every built-in reward with its options."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from pathlib import Path

from megarl.config.load import load_config
from megarl.rewards.base import read_answers
from megarl.rewards.built_in import BUILT_IN, NEED_LABELS
from megarl.rewards.load import configured_rewards, load_reward
from megarl.types import Prompt, Rollout, RolloutRequest

PAGE = (Path(__file__).parents[2] / "docs/rewards.md").read_text()


CODE, OWN, STEPS = re.findall(r"^```python\n(.*?)^```\n", PAGE, re.DOTALL | re.MULTILINE)


def test_the_python_runs() -> None:
    done = subprocess.run(
        [sys.executable, "-c", CODE + STEPS], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_the_settings_are_settings(tmp_path: Path) -> None:
    """The page's yaml is read, and every figure that it names is one that a run writes."""
    (text,) = re.findall(r"^```yaml\n(.*?)^```\n", PAGE, re.DOTALL | re.MULTILINE)
    (tmp_path / "own.yaml").write_text(text)
    config = load_config(tmp_path / "own.yaml").reward
    assert config.clip == [-1, 2] and config.extra_functions["form"].coef == 0.2
    assert [each.name for each in configured_rewards(config, "label")] == ["math_verify", "form"]


def test_the_reward_of_ones_own_is_one(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN + "\n")
    reward = load_reward(f"{tmp_path / 'own.py'}:LastWord")
    prompts = [Prompt(i, (1,), "q", "blue", "mine") for i in range(3)]
    texts = ["It is blue", "blue, or red", ""]
    assert reward(prompts, texts) == [1.0, 0.0, 0.0]
    rollouts = [
        Rollout(RolloutRequest(i, i, prompt, 0), (1,), (0.0,), text, "stop", 0)
        for i, (prompt, text) in enumerate(zip(prompts, texts, strict=True))
    ]
    assert read_answers(reward, "own", rollouts) == ["blue", "red", None]


def test_every_reward_is_in_the_table() -> None:
    rows = [line.strip("|").split("|") for line in PAGE.splitlines() if line.startswith("| `")]
    found = {row[0].strip(" `"): row for row in rows}
    assert found.keys() == BUILT_IN.keys()
    for name, row in found.items():
        names = [n for n in inspect.signature(BUILT_IN[name]).parameters if not n.startswith("_")]
        assert re.findall(r"`(\w+)`", row[3]) == names, name
        assert (row[2].strip() == "label") == (name in NEED_LABELS)

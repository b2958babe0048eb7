"""docs/rewards.md: its Python runs, and its table has every built-in reward with its options."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from pathlib import Path

from megarl.config.load import load_config
from megarl.rewards.built_in import BUILT_IN, NEED_LABELS
from megarl.rewards.load import configured_rewards

PAGE = (Path(__file__).parents[2] / "docs/rewards.md").read_text()


def test_the_python_runs() -> None:
    first, second = re.findall(r"^```python\n(.*?)^```\n", PAGE, re.DOTALL | re.MULTILINE)
    done = subprocess.run(
        [sys.executable, "-c", first + second], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_the_settings_are_settings(tmp_path: Path) -> None:
    """The page's yaml is read, and every figure that it names is one that a run writes."""
    (text,) = re.findall(r"^```yaml\n(.*?)^```\n", PAGE, re.DOTALL | re.MULTILINE)
    (tmp_path / "own.yaml").write_text(text)
    config = load_config(tmp_path / "own.yaml").reward
    assert config.clip == [-1, 2] and config.extra_functions["form"].coef == 0.2
    assert [each.name for each in configured_rewards(config, "label")] == ["math_verify", "form"]


def test_every_reward_is_in_the_table() -> None:
    rows = [line.strip("|").split("|") for line in PAGE.splitlines() if line.startswith("| `")]
    found = {row[0].strip(" `"): row for row in rows}
    assert found.keys() == BUILT_IN.keys()
    for name, row in found.items():
        names = [n for n in inspect.signature(BUILT_IN[name]).parameters if not n.startswith("_")]
        assert re.findall(r"`(\w+)`", row[3]) == names, name
        assert (row[2].strip() == "label") == (name in NEED_LABELS)

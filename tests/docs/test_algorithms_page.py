"""docs/algorithms.md: its Python runs, and it names what there is."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from megarl.algorithms.advantages import estimator_names
from megarl.algorithms.policy import policy_loss_names
from megarl.config.docs import settings
from megarl.config.load import load_config

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/algorithms.md").read_text()
RECIPES = sorted(path.stem for path in (ROOT / "configs/algorithms").glob("*.yaml"))
KEYS = (
    "adv_estimator policy_loss loss_agg_mode kl_coef use_kl_loss clip_ratio clip_ratio_low "
    "clip_ratio_high filter_groups"
)


def test_the_python_runs() -> None:
    code = "".join(re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]


def test_every_estimator_and_loss_is_named() -> None:
    rows = dict(re.findall(r"^\| `(adv_estimator|policy_loss)` \| (.*) \|$", PAGE, re.MULTILINE))
    for key, names in (("adv_estimator", estimator_names()), ("policy_loss", policy_loss_names())):
        assert set(names) <= set(re.findall(r"[a-z_]+", rows[key])), key


def test_every_key_is_a_setting() -> None:
    known = {part for setting in settings() for part in setting.key.split(".")}
    table = PAGE.partition("## Settings")[2]
    found = re.findall(r"^\| `([a-z_, `]+)[`:]", table, re.MULTILINE)
    keys = {key for keys in found for key in re.findall(r"[a-z_]+", keys)}
    assert len(keys) > 12 and keys <= known, keys - known


def test_every_algorithm_has_been_tried() -> None:
    """The table has a row for each, with an accuracy that rose as the long test asks for."""
    seed = r"(0\.\d+) to (0\.\d+) \|"
    rows = re.findall(rf"^\| (\w+) \| {seed} {seed} {seed}", PAGE, re.MULTILINE)
    assert sorted(name for name, *_ in rows) == RECIPES
    for _, *values in rows:
        for first, last in zip(values[::2], values[1::2], strict=True):
            assert float(last) >= float(first) + 0.15


@pytest.mark.parametrize("name", RECIPES)
def test_each_algorithm_has_its_configs(name: str) -> None:
    """For the demo's model and for an 8B, with the settings of its file and no others' in them."""
    assert f"| [{name}](../configs/algorithms/{name}.yaml) |" in PAGE
    own = load_config(ROOT / f"configs/algorithms/{name}.yaml").algorithm
    recipe = f"configs/recipes/{name.replace('_', '-')}-llama3.1-8b-1n8g.yaml"
    for path in (f"configs/demo/{name}.yaml", recipe):
        found = load_config(ROOT / path).algorithm
        for key in KEYS.split():
            assert getattr(found, key) == getattr(own, key), (path, key)

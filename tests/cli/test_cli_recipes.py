"""`--dry-run` of the recipes: no GPU, no weights, and figures that fit the GPUs they are for."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from megarl.cli.main import main
from megarl.errors import ConfigError

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "configs/recipes").glob("*n8g.yaml"))
GPU_GB = 80.0


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_it_fits(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    assert main(["train", str(recipe), "--dry-run", "--ranks-per-node", "8"]) == 0
    text = capsys.readouterr().out
    nodes = int(re.findall(r"-(\d+)n8g", recipe.name)[0])
    assert f"{8 * nodes} ranks in 1 pool(s)" in text and "not checked here: weights" in text
    update, rollout = re.findall(r"([\d.]+) GB in an update, ([\d.]+) GB and vLLM", text)[0]
    assert float(update) < 0.9 * GPU_GB and float(rollout) < 0.6 * GPU_GB
    synced, near, far = re.findall(
        r"sync: ([\d.]+) GB into .*its node ([\d.]+), from others ([\d.]+)", text
    )[0]
    weights = float(re.findall(r"rollout +([\d.]+)", text.split("GB of a rank")[1])[0])
    assert 0 < float(synced) <= weights
    assert (float(far) == 0.0) == (nodes == 1)
    assert float(near) <= float(synced)


def test_a_wrong_size_is_found_without_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    recipe = str(ROOT / "configs/recipes/ppo-llama3.1-70b-16n8g.yaml")
    with pytest.raises(ConfigError, match="stages"):
        from megarl.cli.run import run

        run("train", recipe, ["actor.mesh=t8p3+sp", "run.world_size=120"], dry_run=True)

"""`--dry-run` of the recipes: no GPU, no weights, and figures that fit the GPUs they are for."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from megarl.cli.main import main
from megarl.cli.memory import Moment, RoleMemory, gpu_bytes, moments
from megarl.config.load import load_config
from megarl.config.schema import Config
from megarl.errors import ConfigError
from megarl.layout.memory import RankMemory

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "configs/recipes").glob("*n8g.yaml"))
MODELS = ROOT / "configs/recipes/models"
GPU_GB, FREE_GB = 85.5, 5.5
"""An H100 of 80 GiB; what is left of it for CUDA, NCCL and fragments."""


def dry_run(capsys: pytest.CaptureFixture[str], config: Path, *overrides: str) -> str:
    assert main(["train", str(config), *overrides, "--dry-run", "--ranks-per-node", "8"]) == 0
    return capsys.readouterr().out


def sizes_of(text: str, config: Path) -> dict[str, dict[str, float]]:
    """Ranks -> moment -> GB of a GPU, vLLM's share included where it is there."""
    share = load_config(config, []).rollout.gpu_memory_utilization
    found = {}
    for ranks, sizes, rest in re.findall(r"  ranks (\S+): (.*)\n    (.*)", text):
        moments = {
            name: float(size) for size, name in re.findall(r"([\d.]+) GB in (an? \w+)", sizes)
        }
        if beside := re.findall(r"vLLM's ([\d.]+) of the GPU comes to (.*?):", rest):
            assert float(beside[0][0]) == share
            for name in beside[0][1].split(" and "):
                moments[name] += share * GPU_GB
        found[ranks] = moments
    return found


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_it_fits(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    text = dry_run(capsys, recipe)
    nodes = int(re.findall(r"-(\d+)n8g", recipe.name)[0])
    assert f"{8 * nodes} ranks in 1 pool(s)" in text
    assert re.search(r"not checked here: weights, .*has no weights\), device and engines", text)
    (moments,) = sizes_of(text, recipe).values()
    assert moments.keys() == {"an update", "a rollout", "a checkpoint"}
    assert max(moments.values()) < GPU_GB - FREE_GB, moments
    assert float(re.findall(r"([\d.]+) GB of a GPU at least", text)[0]) < GPU_GB - FREE_GB
    synced, near, far = re.findall(
        r"sync: ([\d.]+) GB into .*its node ([\d.]+), from others ([\d.]+)", text
    )[0]
    weights = float(re.findall(r"rollout +([\d.]+)", text.split("GB of a rank")[1])[0])
    assert 0 < float(synced) <= weights
    share = load_config(recipe, []).rollout.gpu_memory_utilization
    assert weights < 0.6 * share * GPU_GB, "the rest is for the cache"
    assert (float(far) == 0.0) == (nodes == 1)
    assert float(near) <= float(synced)


def test_pools_of_their_own_fit(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing leaves the GPU, and vLLM is alone on its own."""
    monkeypatch.chdir(ROOT)
    config = ROOT / "examples/slurm/ppo_pools.yaml"
    scores = str(MODELS / "llama-3.1-8b-reward")
    text = dry_run(
        capsys, config, f"actor.model.path={MODELS / 'llama-3.1-8b'}",
        f"critic.model.path={scores}", f"reward.model.path={scores}",
    )  # fmt: skip
    found = sizes_of(text, config)
    assert [set(moments) for moments in found.values()] == [
        {"an update", "a checkpoint"}, {"an update", "a checkpoint"}, {"a rollout"}
    ]  # fmt: skip
    assert max(size for moments in found.values() for size in moments.values()) < GPU_GB - FREE_GB


def test_moments_by_hand() -> None:
    """Two trained roles, of which one gives its memory back, and one that scores."""
    config, GB = Config(), 10**9
    own = RankMemory(4 * GB, 8 * GB, 12 * GB, 5 * GB, 3 * GB)
    other = RankMemory(2 * GB, 4 * GB, 6 * GB, 1 * GB, 9 * GB)
    judge = RankMemory(1 * GB, 0, 0, 7 * GB, 0)
    roles = {
        "actor": RoleMemory(own, away=20 * GB, away_but_saved=12 * GB),
        "critic": RoleMemory(other),
        "reward": RoleMemory(judge),
    }
    stay = 4 + (2 + 4 + 6) + 1

    def found(**rollout: object) -> list[tuple[str, float, bool]]:
        changed = replace(config, rollout=replace(config.rollout, **rollout))  # type: ignore[arg-type]
        return [
            (one.name, one.size / GB, one.beside_vllm)
            for one in moments(changed, roles, 17 * GB, "train")
        ]

    assert found(enable_sleep_mode=True) == [
        ("an update", stay + 20 + 5, False),
        ("a rollout", stay + 7, True),  # an evaluation's answers are scored beside vLLM
        ("a checkpoint", stay + 12 + 3, True),
    ]
    assert found()[0] == ("an update", stay + 20 + 5, True)
    assert found(engine="transformers")[1] == ("a rollout", stay + 17 + 7, False)
    assert [one.name for one in moments(config, roles, 0, "train")] == ["an update", "a checkpoint"]
    assert [one.name for one in moments(config, roles, 17, "eval")] == ["a rollout"]


def test_the_least_gpu() -> None:
    asleep, beside = Moment("an update", 60, False), Moment("a checkpoint", 30, True)
    assert gpu_bytes([asleep, beside], 0.6, 12) == pytest.approx(75)
    assert gpu_bytes([asleep, beside], 0.25, 12) == pytest.approx(60)
    assert gpu_bytes([asleep, beside], 0.25, 20) == pytest.approx(80)
    assert gpu_bytes([beside], 1.0, 20) == float("inf")
    assert gpu_bytes([Moment("a rollout", 0, True)], 0.5, 20) == pytest.approx(40)


def test_a_wrong_size_is_found_without_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    recipe = str(ROOT / "configs/recipes/ppo-llama3.1-70b-16n8g.yaml")
    with pytest.raises(ConfigError, match="stages"):
        from megarl.cli.run import run

        run("train", recipe, ["actor.mesh=t8p3+sp", "run.world_size=120"], dry_run=True)

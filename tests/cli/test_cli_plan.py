"""`megarl plan reshard` on the recipes: figures that can be worked out by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from megarl.cli.main import main

ROOT = Path(__file__).parents[2]
RECIPE = "configs/recipes/llama-3.1-70b-128.yaml"
PARAMETERS = 70_553_706_496
NORMS = (2 * 80 + 1) * 8192
"""Held whole by every tensor rank."""


@pytest.fixture
def planned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> tuple[dict[str, Any], str]:
    """The JSON and the text of the 70B recipe."""
    monkeypatch.chdir(ROOT)
    assert main(["plan", "reshard", RECIPE, "--json", str(tmp_path / "plan.json")]) == 0
    return json.loads((tmp_path / "plan.json").read_text()), capsys.readouterr().out


def test_the_70b_recipe(planned: tuple[dict[str, Any], str]) -> None:
    """TP8 x PP4 x DP4 on 16 nodes onto TP8: a stage lies on four nodes, of 20 layers each."""
    found, text = planned
    needed = 2 * (PARAMETERS - NORMS) // 8 + 2 * NORMS
    for rank in found["ranks"].values():
        received = rank["near_received"] + rank["far_received"]
        assert rank["local"] + received == pytest.approx(needed, rel=1e-3)
    far = sum(rank["far_received"] for rank in found["ranks"].values())
    assert far == pytest.approx(16 * 3 / 4 * 2 * PARAMETERS, rel=1e-3), "once to a node of the rest"
    sent = [rank["near_sent"] + rank["far_sent"] for rank in found["ranks"].values()]
    assert max(sent) / (sum(sent) / len(sent)) < 1.1
    assert found["aliased_share"] == pytest.approx(1 / 4, rel=1e-3)
    schemes = found["schemes"]
    m2n = schemes["vLLM's m2n"]
    assert (m2n["near_max"] + m2n["far_max"]) / 1e9 == pytest.approx(98.83, abs=0.01)
    assert m2n["near_max"] / m2n["far_max"] == pytest.approx(1 / 15, rel=1e-3), "one node of 16"
    gathered = schemes["full gather"]["near_max"] + schemes["full gather"]["far_max"]
    ours = schemes["this engine"]["near_max"] + schemes["this engine"]["far_max"]
    assert gathered / ours > 9.0
    assert schemes["full gather"]["seconds"] / schemes["this engine"]["seconds"] > 4.94
    assert found["plan_seconds"] < 1.0
    assert "t8p4d4 on 128 ranks, 16 replicas t8" in text and "25.0 %" in text


def test_on_one_node_nothing_crosses_a_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever moves it, and also where the rollout has ranks of its own."""
    monkeypatch.chdir(ROOT)
    path = tmp_path / "plan.json"
    ranks = ["resources.actor_gpus=[0,1,2,3]", "resources.rollout_gpus=[4,5,6,7]"]
    pools = ["actor.mesh=t4", "rollout.tensor_parallel_size=4", *ranks]
    assert main(["plan", "reshard", RECIPE, "run.world_size=8", *pools, "--json", str(path)]) == 0
    for scheme in json.loads(path.read_text())["schemes"].values():
        assert scheme["far_max"] == 0 < scheme["near_max"]


@pytest.mark.parametrize("value", ["nan", "0", "inf", "-1"])
def test_links_have_speeds(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert main(["plan", "reshard", RECIPE, f"--in-node={value}"]) == 2


def test_links_are_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    seconds = []
    for speed in ("10", "20"):
        path = tmp_path / f"{speed}.json"
        assert main(["plan", "reshard", RECIPE, "--between-nodes", speed, "--json", str(path)]) == 0
        seconds.append(json.loads(path.read_text())["schemes"]["this engine"]["seconds"])
    assert seconds[0] == pytest.approx(2 * seconds[1])


@pytest.mark.parametrize("recipe", sorted((ROOT / "configs/recipes").glob("*.yaml")))
@pytest.mark.slow
def test_every_recipe(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert main(["plan", "reshard", str(recipe)]) == 0


EXPERTS = "configs/recipes/qwen3-235b-a22b-1024.yaml"


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        (["actor.mesh.sequence_parallel=false"], "set actor.mesh.sequence_parallel to true"),
        (
            ["run.world_size=768", "actor.mesh.expert_model_parallel_size=96"],
            "expert-parallel size 96 does not divide num_experts 128",
        ),
        (["rollout.tensor_parallel_size=3"], "rollout.tensor_parallel_size 3 does not divide"),
        (
            ["rollout.pipeline_parallel_size=3"],
            "rollout.pipeline_parallel_size 3 x rollout.tensor_parallel_size 8 = 24 does not",
        ),
    ],
)
def test_refusals_about_experts_and_stages(
    extra: list[str],
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(ROOT)
    assert main(["plan", "reshard", EXPERTS, *extra]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        (["rollout.enable_expert_parallel=true"], "the model has no experts: set it to false"),
        (["--rank", "128"], "--rank 128 is not in 0..127"),
        (["--in-node", "0"], "--in-node is 0.0: give more than 0 GB/s"),
        (["--ranks-per-node", "0"], "--ranks-per-node is 0"),
        (["rollout.tensor_parallel_size=3"], "rollout.tensor_parallel_size 3 does not divide"),
        (["rollout.tensor_paralel_size=4"], "did you mean"),
    ],
)
def test_refusals(
    extra: list[str],
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(ROOT)
    assert main(["plan", "reshard", RECIPE, *extra]) == 2
    assert words in capsys.readouterr().err

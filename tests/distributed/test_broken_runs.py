"""What goes wrong in the middle of a run stops it, with a message that says what and where.

Shown on scripted rollouts: a sync that was left out, a reward that raises or gives NaN, a loss and
a gradient that are not finite. How all ranks then end together is tests/runtime/test_failures.py's.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from cluster import Cluster
from fixed_rollouts import fixed_config, write_fixed_rollouts
from jobs_train import train_on_broken, train_without_the_second_sync
from parts import RoleSpec
from tiny_models import TinyModels

from megarl.config.schema import Config
from megarl.mesh.layout import MeshLayout

pytestmark = pytest.mark.dist
ONE = RoleSpec((0,), MeshLayout())


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """GRPO with one update a step, without a reference."""
    write_fixed_rollouts(tmp_path)
    made = fixed_config(tmp_path, tmp_path / "run")
    made.algorithm.adv_estimator, made.algorithm.kl_coef = "grpo", 0.0
    return made


def test_a_sync_that_was_left_out(cluster: Cluster, tiny: TinyModels, tmp_path: Path) -> None:
    write_fixed_rollouts(tmp_path)
    config = fixed_config(tmp_path, tmp_path / "run")
    (error,) = cluster.run(1, train_without_the_second_sync, config, tiny("llama"), ONE)
    assert "weight version 1" in error and "the actor is at 2" in error


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("raise ValueError('no service')", ["ValueError", "no service", "rows 0 to 23"]),
        ("return [0.0, float('nan')] * (len(prompts) // 2)", ["nan", "row 1 (prompt_id "]),
    ],
)
def test_a_reward_that_breaks(
    body: str, words: list[str], cluster: Cluster, tiny: TinyModels, tmp_path: Path, config: Config
) -> None:
    (tmp_path / "broken.py").write_text(f"def score(prompts, responses):\n    {body}\n")
    config.reward.function = str(tmp_path / "broken.py") + ":score"
    (error,) = cluster.run(1, train_on_broken, config, tiny("llama"), ONE, "nothing")
    for word in ["broken.py:score", *words]:
        assert word in error


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("weights", ["actor, rank 0", "the loss is nan", "samples ["]),
        ("gradients", ["actor", "the gradient norm is", "rows ["]),
    ],
)
def test_numbers_that_are_not_finite(
    what: str, words: list[str], cluster: Cluster, tiny: TinyModels, config: Config
) -> None:
    (error,) = cluster.run(1, train_on_broken, config, tiny("llama"), ONE, what)
    for word in words:
        assert word in error

"""What goes wrong in the middle of a run stops it, with a message that says what and where.

Shown on scripted rollouts: a sync that was left out, a reward that raises or gives NaN, a loss and
a gradient that are not finite. How all ranks then end together is tests/runtime/test_failures.py's.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from cluster import Cluster, process_env
from fixed_rollouts import fixed_config, write_fixed_rollouts
from jobs_train import train_on_broken, train_without_the_second_sync
from parts import RoleSpec
from tiny_models import TinyModels

from megarl.config.save import save_resolved
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
        ("raise ValueError('no service')", ["ValueError", "no service", "on row "]),
        ("return [float('nan')] * len(prompts)", ["gave nan", "for row "]),
    ],
)
def test_a_reward_that_breaks(
    body: str, words: list[str], cluster: Cluster, tiny: TinyModels, tmp_path: Path, config: Config
) -> None:
    (tmp_path / "broken.py").write_text(f"def score(prompts, responses):\n    {body}\n")
    config.reward.function = str(tmp_path / "broken.py") + ":score"
    (error,) = cluster.run(1, train_on_broken, config, tiny("llama"), ONE, "nothing")
    for word in ["broken.py:score", " (prompt_id ", *words]:
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


@pytest.mark.slow
def test_the_last_line_says_rank_step_verb_and_sample(
    tiny: TinyModels, tmp_path: Path, config: Config
) -> None:
    """Through the command, as users see it: one line, no traceback, status 1, no model folder."""
    (tmp_path / "broken.py").write_text(
        "def score(prompts, responses):\n"
        "    return [1 / 0 if prompt.prompt_id == 3 else 0.0 for prompt in prompts]\n"
    )
    config.reward.function = f"{tmp_path / 'broken.py'}:score"
    config.actor.model.path, config.resources = tiny("llama"), {"actor_gpus": [0]}
    save_resolved(config, {}, tmp_path / "run.yaml", "train")
    command = [sys.executable, "-m", "megarl.cli.main", "train", str(tmp_path / "run.yaml")]
    done = subprocess.run(command, env=process_env(), capture_output=True, text=True, timeout=120)
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("megarl: rank 0 failed at step 1, verb "), done.stderr
    assert "(reward)" in last and "ZeroDivisionError" in last and "prompt_id 3" in last
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert not list(Path(config.run.dir).glob("model*"))

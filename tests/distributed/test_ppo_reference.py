"""Three PPO steps of a run on TP2 PP2 against plain PPO in torch on transformers models.

Proven: losses, KL, entropy, values and gradient norms of actor and critic agree to 1e-5 over three
steps of two epochs each, in which the policy leaves its reference and the critic its zeros. With
test_layout_invariance this holds for every layout. Not shown: mini-batches (their order is our own
choice), cosine decay.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from cluster import Cluster
from fixed_rollouts import fixed_config, write_fixed_rollouts
from jobs_train import train_run
from parts import RoleSpec
from ppo_reference import plain_steps
from tiny_models import TinyModels

from megarl.config.schema import Config
from megarl.mesh.layout import MeshLayout

pytestmark = pytest.mark.dist


def plain(config: Config) -> None:
    """GAE, fixed KL penalty in the reward, entropy bonus."""


def steered(config: Config) -> None:
    """Adaptive penalty and one in the loss, a step for the critic alone, rates that change."""
    for role in (config.actor, config.critic):
        role.optimizer.lr_warmup_steps, role.optimizer.lr_decay_style = 2, "linear"
        role.optimizer.min_lr = 1e-5
    config.algorithm.kl_ctrl.type, config.algorithm.kl_ctrl.target_kl = "adaptive", 0.01
    config.algorithm.kl_ctrl.horizon = 50
    config.algorithm.use_kl_loss, config.algorithm.kl_loss_coef = True, 0.5
    config.algorithm.critic_warmup = 1


def kl_in_the_loss_alone(config: Config) -> None:
    """One update a step: the reference is read, and no log-probs are recomputed for it."""
    config.algorithm.kl_coef, config.algorithm.ppo_epochs = 0.0, 1
    config.algorithm.use_kl_loss, config.algorithm.kl_loss_coef = True, 0.1


def corrected(config: Config) -> None:
    """Importance weights, responses left out; the terms beside the surrogate count what is left."""
    algorithm = config.algorithm
    algorithm.use_kl_loss, algorithm.kl_loss_coef = True, 0.5
    algorithm.rollout_is, algorithm.rollout_is_threshold = "token", 1.05
    algorithm.rollout_rs, algorithm.rollout_rs_threshold = "geometric", 1.25
    algorithm.overlong_filtering = True


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(plain, marks=pytest.mark.slow),
        steered,
        corrected,
        pytest.param(kl_in_the_loss_alone, marks=pytest.mark.slow),
    ],
)
def test_a_run_is_plain_ppo(
    change: Callable[[Config], None], cluster: Cluster, tiny: TinyModels, tmp_path: Path
) -> None:
    write_fixed_rollouts(tmp_path)
    config = fixed_config(tmp_path, tmp_path / "run")
    config.algorithm.global_batch_size = 24
    change(config)
    ranks = RoleSpec((0, 1, 2, 3), MeshLayout(tp=2, pp=2))
    found = cluster.run(4, train_run, config, tiny("llama"), ranks, ranks, ranks, 2)[0]
    expected = cluster.run(1, plain_steps, tiny("llama"), tmp_path, config)[0]
    for step in range(3):
        assert ("actor/grad_norm" in found[step + 1]) == ("actor/grad_norm" in expected[step])
        for name, value in expected[step].items():
            difference = abs(found[step + 1][name] - value)
            assert difference <= 1e-5 * max(1.0, abs(value)), f"step {step + 1} {name}"
    if change is steered:
        assert abs(found[3]["actor/kl_coef"] / config.algorithm.kl_coef - 1) > 0.05
    if change is corrected:
        assert 0.1 < found[1]["rollout_corr/truncated_fraction"] < 0.9
        assert 0.1 < found[1]["rollout_corr/masked_fraction"] < 0.9
        assert 0.1 < found[1]["overlong_filtered"] < 0.9

"""A run does not depend on its parallel layout: three PPO steps from the same fixed rollouts.

Every loss here is a sum over response tokens, divided by a count of the whole mini-batch that all
ranks know; Megatron's 1 / micro-batches and 1 / DP are multiplied away (see models/schedule.py).
So losses, KL and gradient norms may differ between layouts by fp32 rounding only. They are compared
with those of one process, over all optimizer steps of three PPO steps: GAE, KL to the reference in
the reward, two mini-batches, two epochs, value clipping, entropy bonus, a reshard each step.

What it does not show: that the losses are right (tests/algorithms and tests/models do), dropout,
context parallelism.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from cluster import Cluster
from fixed_rollouts import fixed_config, write_fixed_rollouts
from jobs_train import train_run, train_with_local_denominators
from parts import RoleSpec
from tiny_models import TinyModels

from megarl.config.schema import Config, ExtraRewardConfig
from megarl.mesh.layout import MeshLayout

pytestmark = pytest.mark.dist
COMPARED = (
    "actor/pg_loss", "actor/ppo_kl", "actor/ppo_kl_k3", "actor/ref_kl", "actor/grad_norm",
    "actor/entropy", "actor/pg_clipfrac", "critic/vf_loss", "critic/grad_norm",
    "critic/values_mean", "critic/vf_explained_var", "reward_mean",
)  # fmt: skip
TOLERANCE = 1e-5
PP2 = MeshLayout(pp=2)
TP2PP2 = MeshLayout(tp=2, pp=2)

Train = Callable[..., dict[int, dict[str, float]]]


@pytest.fixture(scope="module")
def train(cluster: Cluster, tiny: TinyModels, tmp_path_factory: pytest.TempPathFactory) -> Train:
    """Trains on a layout and returns the metrics of each step."""
    folder = tmp_path_factory.mktemp("rollouts")
    write_fixed_rollouts(folder)

    def run(
        actor: RoleSpec,
        critic: RoleSpec | None = None,
        reference: RoleSpec | None = None,
        *,
        group_relative: bool = False,
        rollout_tp: int = 1,
        family: str = "llama",
        change: Callable[[Config], None] | None = None,
        job: Callable[..., Any] = train_run,
        rollout_ranks: tuple[int, ...] = (),
    ) -> dict[int, dict[str, float]]:
        config = fixed_config(folder, tmp_path_factory.mktemp("run"))
        if change is not None:
            change(config)
        roles = (None, None) if group_relative else (critic or actor, reference or actor)
        pools = {actor.ranks, rollout_ranks or actor.ranks}
        pools |= {role.ranks for role in roles if role is not None}
        own = (None, rollout_ranks) if rollout_ranks else ()
        arguments = (config, tiny(family), actor, *roles, rollout_tp, *own)
        answers = cluster.run(sorted(pools), job, *arguments)
        return answers[0]

    return run


def on_ranks(layout: MeshLayout, start: int = 0) -> RoleSpec:
    """A role that fills the ranks from `start` on."""
    return RoleSpec(tuple(range(start, start + layout.size)), layout)


@pytest.fixture(scope="module")
def single(train: Train) -> dict[int, dict[str, float]]:
    """One process."""
    found = train(on_ranks(MeshLayout()))
    assert sorted(found) == [1, 2, 3]
    # The run must move, or every layout would agree about nothing.
    assert abs(found[3]["actor/ref_kl"]) > 1e-2  # k1 is signed
    assert abs(found[1]["critic/vf_loss"] - found[3]["critic/vf_loss"]) > 1e-3
    return found


def assert_same(found: dict[int, dict[str, float]], expected: dict[int, dict[str, float]]) -> None:
    """All compared metrics of all steps agree to TOLERANCE, relative where they are above 1."""
    assert sorted(found) == sorted(expected)
    assert not differences(found, expected)


def differences(
    found: dict[int, dict[str, float]], expected: dict[int, dict[str, float]]
) -> dict[str, Any]:
    """What does not agree: "step 1 actor/pg_loss" -> (found, expected)."""
    apart: dict[str, Any] = {}
    for step, metrics in expected.items():
        assert set(found[step]) == set(metrics)
        for name in [name for name in COMPARED if name in metrics]:
            difference = abs(found[step][name] - metrics[name]) / max(1.0, abs(metrics[name]))
            if not difference <= TOLERANCE:
                apart[f"step {step} {name}"] = (found[step][name], metrics[name])
    return apart


LAYOUTS = {
    "tp2": MeshLayout(tp=2),
    "pp2": PP2,
    "tp2pp2": TP2PP2,
    "dp2": MeshLayout(dp=2),
    "pp2-vpp2": MeshLayout(pp=2, vpp=2),
    "tp2-sequence-parallel": MeshLayout(tp=2, sequence_parallel=True),
    "dp2pp2": MeshLayout(dp=2, pp=2),
}


SLOW = ("tp2", "pp2", "dp2pp2")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n in SLOW)) for n in LAYOUTS]
)
def test_layout_changes_nothing(
    name: str, train: Train, single: dict[int, dict[str, float]]
) -> None:
    spec = on_ranks(LAYOUTS[name])
    assert_same(train(spec, rollout_tp=LAYOUTS[name].tp), single)


@pytest.mark.slow
def test_selective_recompute_changes_nothing(
    train: Train, single: dict[int, dict[str, float]]
) -> None:
    def change(config: Config) -> None:
        config.actor.model.recompute_granularity = "selective"
        config.critic.model.recompute_granularity = "selective"

    assert_same(train(on_ranks(PP2), change=change), single)


def test_distributed_optimizer_changes_nothing(
    train: Train, single: dict[int, dict[str, float]]
) -> None:
    def change(config: Config) -> None:
        config.actor.optimizer.use_distributed_optimizer = True
        config.critic.optimizer.use_distributed_optimizer = True

    assert_same(train(on_ranks(MeshLayout(dp=2)), change=change), single)


def test_two_pools_change_nothing(train: Train, single: dict[int, dict[str, float]]) -> None:
    """Actor, reference and rollout on ranks 0-3, the critic on ranks 4-5: six processes."""
    actor, critic = on_ranks(TP2PP2), on_ranks(PP2, start=4)
    assert_same(train(actor, critic, rollout_tp=2), single)


@pytest.mark.slow
def test_a_pool_for_every_role_changes_nothing(
    train: Train, single: dict[int, dict[str, float]]
) -> None:
    """Actor on ranks 0-1, critic on 2, reference on 3, rollouts on 4-5: six processes."""
    one = MeshLayout()
    roles = on_ranks(PP2), on_ranks(one, start=2), on_ranks(one, start=3)
    assert_same(train(*roles, rollout_ranks=(4, 5)), single)


def test_different_meshes_in_one_pool_change_nothing(
    train: Train, single: dict[int, dict[str, float]]
) -> None:
    """Actor on TP1 PP2 VPP2 DP2 with full recompute, critic on TP1 PP2 DP2, reference on TP2 DP2.

    Each role's verbs run inside its own mesh's `activate()`; together they give what each gives
    alone.
    """

    def change(config: Config) -> None:
        config.actor.model.recompute_granularity = "full"

    actor = on_ranks(MeshLayout(pp=2, vpp=2, dp=2))
    critic, reference = on_ranks(MeshLayout(pp=2, dp=2)), on_ranks(MeshLayout(tp=2, dp=2))
    assert_same(train(actor, critic, reference, change=change), single)


def test_group_relative_without_critic_or_reference(train: Train) -> None:
    """GRPO with one update a step: its own log-probs are the old ones, and none are recomputed."""

    def change(config: Config) -> None:
        algorithm = config.algorithm
        algorithm.adv_estimator, algorithm.loss_agg_mode = "grpo", "seq-mean-token-mean"
        algorithm.kl_coef, algorithm.ppo_epochs, algorithm.global_batch_size = 0.0, 1, 24

    alone = train(on_ranks(MeshLayout()), group_relative=True, change=change)
    assert "actor/ref_kl" not in alone[1] and "critic/vf_loss" not in alone[1]
    assert alone[1]["actor/grad_norm"] > 0.01
    both = train(on_ranks(MeshLayout(pp=2, dp=2)), group_relative=True, change=change)
    assert_same(both, alone)


def process_rewards(config: Config) -> None:
    """Rewards of steps, a second reward, everything that shapes them; samples left out."""
    algorithm, reward = config.algorithm, config.reward
    algorithm.adv_estimator, algorithm.kl_coef = "grpo_process", 0.0
    algorithm.policy_loss, algorithm.clip_cov_ratio = "clip_cov", 0.1
    algorithm.clip_cov_lb, algorithm.clip_cov_ub = 0.01, 10.0
    algorithm.rollout_is, algorithm.rollout_rs = "sequence", "token"
    algorithm.overlong_filtering = True
    own = str(reward.function).partition(":")[0]
    reward.function, reward.success_reward = f"{own}:by_word", 0.1
    reward.extra_functions = {"short": ExtraRewardConfig(f"{own}:reward", {}, 0.5)}
    reward.clip, reward.normalize = [-0.2, 0.5], True
    reward.length_penalty, reward.overlong_buffer_len = "group", 4


def other_prompts_for_dull_ones(config: Config) -> None:
    """Dynamic sampling, over the end of the data; kl_cov's pick."""
    algorithm = config.algorithm
    config.data.rollout_batch_size, algorithm.global_batch_size = 6, 6
    algorithm.adv_estimator, algorithm.kl_coef = "grpo", 0.0
    algorithm.policy_loss, algorithm.kl_cov_ratio = "kl_cov", 0.1
    algorithm.filter_groups.enable = True
    config.reward.success_reward = 0.2


def greedy_answers(config: Config) -> None:
    """ReMax: a greedy answer to each prompt, its reward beside the samples'."""
    config.algorithm.adv_estimator, config.algorithm.kl_coef = "remax", 0.0
    config.reward.overlong_buffer_len = 4


@pytest.mark.parametrize("change", [process_rewards, other_prompts_for_dull_ones, greedy_answers])
def test_what_is_chosen_from_the_whole_step_is_the_same(
    change: Callable[[Config], None], train: Train
) -> None:
    """Picked tokens, rejected and replaced samples, running norms: from all ranks' samples."""
    alone = train(on_ranks(MeshLayout()), group_relative=True, change=change)
    both = train(on_ranks(MeshLayout(pp=2, dp=2)), group_relative=True, change=change)
    assert_same(both, alone)
    assert alone[3]["actor/grad_norm"] > 0.01
    if change is process_rewards:
        assert 0.02 < alone[1]["actor/pg_selected"] <= 0.1
        assert 0.02 < alone[1]["rollout_corr/masked_fraction"] < 0.9
        assert {"reward/short", "reward_shaped_mean"} <= set(alone[1])
    if change is other_prompts_for_dull_ones:
        assert 0.02 < alone[1]["actor/pg_selected"] <= 0.12
        assert max(found["filter_groups/rounds"] for found in alone.values()) > 1
        assert all(0 < found["train_accuracy"] < 1 for found in alone.values())


def remembers(config: Config) -> None:
    """What a step leaves for the next: how far the data is, and the mean and spread of rewards."""
    other_prompts_for_dull_ones(config)
    config.reward.normalize, config.reward.length_penalty = True, "group"
    config.checkpoint.save_interval = 1


def test_a_run_goes_on_with_what_it_remembers(
    train: Train, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Three steps at once, and two starts of the same run: the same figures, bit for bit."""
    folder = tmp_path_factory.mktemp("goes-on")

    def change(config: Config, steps: int, name: str) -> None:
        remembers(config)
        config.run.steps, config.run.dir = steps, str(folder / name)

    spec = on_ranks(MeshLayout(dp=2))

    def run(steps: int, name: str) -> dict[int, dict[str, float]]:
        return train(spec, group_relative=True, change=lambda config: change(config, steps, name))

    whole = run(3, "whole")
    first, second = run(1, "parts"), run(3, "parts")
    assert sorted(first) == [1] and sorted(second) == [1, 2, 3]
    assert max(found["filter_groups/rounds"] for found in whole.values()) > 1
    clocks = ("timing_s/", "perf/", "reshard/seconds")
    for step, metrics in whole.items():
        left = {k: v for k, v in metrics.items() if not k.startswith(clocks)}
        assert {k: second[step][k] for k in left} == left


KINDS = {
    "rloo-cispo": ("rloo", "cispo", "seq-mean-token-sum"),
    "opo-sapo": ("opo", "sapo", "seq-mean-token-mean"),
    "gpg-reinforce": ("gpg", "reinforce", "token-mean"),
    "reinforce++-geo_mean": ("reinforce_plus_plus", "geo_mean", "seq-mean-token-sum-norm"),
    "reinforce++baseline-gspo": ("reinforce_plus_plus_baseline", "gspo", "seq-mean-token-mean"),
}


@pytest.mark.slow
@pytest.mark.parametrize(("estimator", "loss", "mean"), KINDS.values(), ids=KINDS.keys())
def test_no_algorithm_depends_on_the_layout(
    estimator: str, loss: str, mean: str, train: Train
) -> None:
    """Nor on micro-batches; responses that were cut off are left out."""

    def change(config: Config) -> None:
        algorithm = config.algorithm
        algorithm.adv_estimator, algorithm.policy_loss = estimator, loss
        algorithm.loss_agg_mode, algorithm.kl_coef = mean, 0.0
        algorithm.overlong_filtering = True

    alone = train(on_ranks(MeshLayout()), group_relative=True, change=change)

    def cut(config: Config) -> None:
        change(config)
        config.algorithm.micro_batch_size = 3

    both = train(on_ranks(MeshLayout(pp=2, dp=2)), group_relative=True, change=cut)
    assert_same(both, alone)
    assert alone[3]["actor/grad_norm"] > 0.003


@pytest.mark.slow
def test_tied_embeddings_stay_tied_over_stages(train: Train) -> None:
    """Tied embeddings are two copies under PP: their gradients are summed and they move as one."""
    alone = train(on_ranks(MeshLayout()), family="qwen3")
    assert_same(train(on_ranks(TP2PP2), rollout_tp=2, family="qwen3"), alone)


EXPERTS = {
    "ep2": MeshLayout(dp=2, ep=2),
    "tp2etp2": MeshLayout(tp=2, etp=2, sequence_parallel=True),
    "tp2ep2pp2": MeshLayout(tp=2, ep=2, pp=2, sequence_parallel=True),
}


@pytest.fixture(scope="module")
def single_with_experts(train: Train) -> dict[int, dict[str, float]]:
    """One process that has all experts."""
    return train(on_ranks(MeshLayout()), family="mixtral")


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPERTS)
def test_where_experts_lie_changes_nothing(
    name: str, train: Train, single_with_experts: dict[int, dict[str, float]]
) -> None:
    """Dealt over ranks, or cut over them; their gradients have data-parallel ranks of their own."""
    assert single_with_experts[3]["actor/grad_norm"] > 0.01
    found = train(on_ranks(EXPERTS[name]), family="mixtral")
    assert_same(found, single_with_experts)


def test_micro_batches_change_nothing(train: Train, single: dict[int, dict[str, float]]) -> None:
    """Cut by rows or filled up to a number of padded tokens, on uneven data-parallel slices."""

    def change(config: Config) -> None:
        config.algorithm.use_dynamic_batch_size = True
        config.algorithm.max_tokens_per_gpu = 40

    assert_same(train(on_ranks(MeshLayout(dp=2)), change=change), single)


@pytest.mark.parametrize(
    ("layout", "max_tokens"),
    [
        (MeshLayout(tp=2, sequence_parallel=True), 40),
        pytest.param(PP2, None, marks=pytest.mark.slow),
    ],
    ids=["tp2-sequence-parallel", "pp2"],
)
def test_samples_that_share_rows_change_nothing(
    layout: MeshLayout, max_tokens: int | None, train: Train, single: dict[int, dict[str, float]]
) -> None:
    """Packed rows, with attention inside each sample: in updates, log-probs, values, reference."""

    def change(config: Config) -> None:
        config.algorithm.sequence_packing = True
        config.algorithm.use_dynamic_batch_size = max_tokens is not None
        config.algorithm.max_tokens_per_gpu = max_tokens or 0

    assert_same(train(on_ranks(layout), change=change), single)


def test_a_wrong_denominator_would_be_seen(
    train: Train, single: dict[int, dict[str, float]]
) -> None:
    """The comparison has teeth: losses that are means of each rank's mean are far outside it."""
    found = train(on_ranks(MeshLayout(dp=2)), job=train_with_local_denominators)
    assert "step 1 actor/pg_loss" in differences(found, single)
    assert "step 1 critic/grad_norm" in differences(found, single)


def test_overlapped_reduction_changes_nothing(
    train: Train, single: dict[int, dict[str, float]]
) -> None:
    """Also where steps differ in their number of micro-batches."""

    def change(config: Config) -> None:
        config.actor.optimizer.overlap_grad_reduce = True
        config.critic.optimizer.overlap_grad_reduce = True
        config.algorithm.use_dynamic_batch_size = True
        config.algorithm.max_tokens_per_gpu = 40

    assert_same(train(on_ranks(MeshLayout(dp=2)), change=change), single)

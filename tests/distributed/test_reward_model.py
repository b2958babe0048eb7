"""The reward model: transformers' scores, on every mesh, and in a run.

Shown: a sample's score is what Hugging Face's ...ForSequenceClassification says of prompt and
response together, wherever the sample and the model live; a run whose reward is function + coef x
model learns the same with the reward model on a pool of its own. Not shown: a tokenizer that is not
the actor's, which is refused.
"""

from __future__ import annotations

import random
from pathlib import Path

import jobs_reward
import pytest
import torch
from cluster import Cluster
from fixed_rollouts import fixed_config, write_fixed_rollouts
from jobs_train import train_run
from parts import RoleSpec
from tiny_models import EOS, VOCAB_SIZE, TinyModels

from megarl.mesh.layout import MeshLayout
from megarl.types import Prompt, Rollout, RolloutRequest

pytestmark = pytest.mark.dist
LAYOUTS = {
    "tp2": MeshLayout(tp=2),
    "pp2": MeshLayout(pp=2),
    "dp2pp2": MeshLayout(dp=2, pp=2),
    "tp2pp2": MeshLayout(tp=2, pp=2),
    "pp2-vpp2": MeshLayout(pp=2, vpp=2),
    "tp2-sequence-parallel": MeshLayout(tp=2, sequence_parallel=True),
}


def ragged_rollouts() -> list[Rollout]:
    """Twenty samples of 2 to 16 tokens; every third was cut off."""
    dice = random.Random(3)
    made = []
    for row in range(20):
        prompt = tuple(dice.randrange(2, VOCAB_SIZE) for _ in range(dice.randrange(1, 8)))
        answer = (*(dice.randrange(2, VOCAB_SIZE) for _ in range(dice.randrange(0, 8))), EOS)
        ended = "length" if row % 3 == 2 else "stop"
        request = RolloutRequest(row, row // 2, Prompt(row // 2, prompt, "q", "a", "s"), seed=0)
        made.append(Rollout(request, answer, (-1.0,) * len(answer), "words", ended, 0))
    return made


def by_transformers(path: str, rollouts: list[Rollout]) -> list[float]:
    """The score of each sample alone, without padding."""
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(path, dtype=torch.float32)
    with torch.no_grad():
        return [
            float(model(torch.tensor([[*r.request.prompt.token_ids, *r.response_ids]])).logits)
            for r in rollouts
        ]


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("family", ["llama-reward", "qwen2-reward"])
def test_scores_equal_transformers(
    family: str, name: str, cluster: Cluster, tiny: TinyModels
) -> None:
    layout, rollouts, path = LAYOUTS[name], ragged_rollouts(), tiny(family)
    expected = by_transformers(path, rollouts)
    assert max(expected) - min(expected) > 0.3  # or equal scores would pass for equal samples
    job = jobs_reward.scores
    answers = cluster.run(layout.size, job, tiny("llama"), path, layout, rollouts, 0.5, 2.0)
    found = {row: score for answer in answers for row, score in answer.items()}
    for row, value in enumerate(expected):
        cut_off = jobs_reward.EOS_PENALTY * (row % 3 == 2)
        assert found[row] == pytest.approx(0.5 + 2.0 * value - cut_off, abs=1e-5)


@pytest.mark.slow
def test_a_run_on_three_pools_learns_the_same(
    cluster: Cluster, tiny: TinyModels, tmp_path: Path
) -> None:
    """Function and model together: one process, and the reward model alone on ranks 2 and 3."""
    write_fixed_rollouts(tmp_path)
    found = []
    for name, actor, reward in (
        ("one", RoleSpec((0,), MeshLayout()), RoleSpec((0,), MeshLayout())),
        ("two", RoleSpec((0, 1), MeshLayout(dp=2)), RoleSpec((2, 3), MeshLayout(tp=2))),
    ):
        config = fixed_config(tmp_path, tmp_path / name)
        config.reward.model_coef = 3.0
        pools = sorted({actor.ranks, reward.ranks})
        path, model = tiny("llama"), tiny("llama-reward")
        arguments = (config, path, actor, actor, actor, 1, (model, reward))
        found.append(cluster.run(pools, train_run, *arguments)[0])
    for step, metrics in found[0].items():
        for key in ("reward_mean", "reward_std", "actor/grad_norm", "critic/vf_loss"):
            assert found[1][step][key] == pytest.approx(metrics[key], rel=1e-5, abs=1e-5), key
    assert found[0][1]["reward_std"] > 0.3


def test_a_score_that_is_not_finite_names_the_sample(cluster: Cluster, tiny: TinyModels) -> None:
    job, path = jobs_reward.refusal_of_a_broken_model, tiny("llama-reward")
    text = cluster.run(1, job, tiny("llama"), path, ragged_rollouts())[0]
    assert "reward model" in text and "nan" in text and "row 0 (prompt_id 0)" in text


def test_a_model_alone_says_nothing_of_right_and_wrong(cluster: Cluster, tiny: TinyModels) -> None:
    """Its scores have no number from which an answer is right: there is no accuracy then, and none
    of samples, which it scores as it scores answers."""
    job, path = jobs_reward.evaluations, tiny("llama-reward")
    both, alone = cluster.run(1, job, tiny("llama"), path, ragged_rollouts())[0]
    ended = [row % 3 != 2 for row in range(20)]
    assert both[1] == ended and alone[1] == [None] * 20
    assert both[0]["eval/accuracy"] == sum(ended) / 20 == both[0]["eval/finished"]
    sampled = [(ended[(2 * i) % 20], ended[(2 * i + 1) % 20]) for i in range(20)]
    assert both[0]["eval/pass@2"] == both[0]["eval/maj@2"] == sum(map(any, sampled)) / 20
    assert both[0]["eval/sampled_accuracy"] == sum(map(sum, sampled)) / 40
    assert alone[0].keys() == {"eval/reward_mean", "eval/finished"}
    assert both[0]["eval/reward_mean"] - alone[0]["eval/reward_mean"] == pytest.approx(1.0)

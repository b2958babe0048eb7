"""PPOTrainer in a process of its own: right answers become likelier, the export loads."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tiny_folder import write_folder

from megarl.algorithms.advantages import estimator
from megarl.errors import ConfigError
from megarl.trainer import PPOBatch, PPOTrainer, check_batch

SCRIPT = """
import json, sys
from megarl import PPOTrainer
from megarl.trainer import PPOBatch

model, out, estimator = sys.argv[1:4]
trainer = PPOTrainer(
    model_name=model, optimizer="adam", lr=3e-3, kl_coef=0.01, clip_range=0.2,
    adv_estimator=estimator,
)
good, bad = [3, 4, 1], [5, 6, 7, 1]
batch = PPOBatch([[5, 6, 7]] * 8, [good] * 4 + [bad] * 4, [1.0] * 4 + [0.0] * 4, groups=[0] * 8)
history = [trainer.update(batch) for _ in range(6)]
trainer.save(out)
trainer.close()
print(json.dumps(history))
"""


def run(model: Path, out: Path, estimator: str) -> list[dict[str, float]]:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(model), str(out), estimator],
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    history: list[dict[str, float]] = json.loads(done.stdout.splitlines()[-1])
    return history


def answer_logprobs(folder: Path) -> tuple[float, float]:
    """transformers' log-probs of the good and of the bad answer."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)

    def total(answer: list[int]) -> float:
        ids = torch.tensor([[5, 6, 7, *answer]])
        with torch.no_grad():
            table = model(ids).logits[0, 2:-1].log_softmax(-1)
        return float(table.gather(1, ids[0, 3:, None]).sum())

    return total([3, 4, 1]), total([5, 6, 7, 1])


def random_model(folder: Path) -> Path:
    """A small Llama."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    config = LlamaConfig(
        vocab_size=70, hidden_size=64, intermediate_size=96, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, head_dim=32, tie_word_embeddings=False,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).float().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("estimator", ["gae", pytest.param("grpo", marks=pytest.mark.slow)])
def test_updates_move_the_policy_towards_the_reward(estimator: str, tmp_path: Path) -> None:
    model = random_model(tmp_path / "model")
    before = answer_logprobs(model)
    history = run(model, tmp_path / estimator, estimator)
    good, bad = answer_logprobs(tmp_path / estimator)
    assert good - bad > before[0] - before[1] + 0.1
    assert all(metrics["actor/grad_norm"] > 0 for metrics in history)
    assert ("critic/vf_loss" in history[0]) == (estimator == "gae")


LOSSES = """
import json, sys
from megarl import PPOTrainer
from megarl.trainer import PPOBatch

model, loss, micro = sys.argv[1:]
trainer = PPOTrainer(
    model_name=model, lr=1e-2, kl_coef=0.0, adv_estimator="grpo", policy_loss=loss,
    ppo_epochs=2, mini_batch_size=4, micro_batch_size=int(micro),
)
answers = [[3, 4, 1], [5, 6, 7, 1], [9], [2, 2, 8, 8, 1], [3, 4, 1], [6, 1], [7, 7, 7, 1], [8, 1]]
rewards = [1.0, 0.0, 0.5, 0.0, 1.0, 0.25, 0.0, 0.75]
batch = PPOBatch([[5, 6, 7]] * 8, answers, rewards, groups=[0] * 4 + [1] * 4)
history = [trainer.update(batch) for _ in range(2)]
trainer.close()
print(json.dumps(history))
"""


@pytest.mark.long
def test_policy_losses_do_not_depend_on_micro_batches(tmp_path: Path) -> None:
    """Of one, of four: the same figures, of losses that read whole responses; and each its own."""
    model, seen = random_model(tmp_path / "model"), {}
    for loss in ("gspo", "geo_mean"):
        for micro in ("1", "4"):
            words = [sys.executable, "-c", LOSSES, str(model), loss, micro]
            done = subprocess.run(words, capture_output=True, text=True, timeout=180)
            assert done.returncode == 0, done.stderr[-3000:]
            seen[loss, micro] = json.loads(done.stdout.splitlines()[-1])
        for one, other in zip(seen[loss, "1"], seen[loss, "4"], strict=True):
            for name, value in one.items():
                assert other[name] == pytest.approx(value, rel=2e-3, abs=2e-5), (loss, name)
            assert abs(one["actor/ratio_mean"] - 1) > 1e-3 and one["actor/grad_norm"] > 0
    last = [seen[loss, "4"][-1]["actor/pg_loss"] for loss in ("gspo", "geo_mean")]
    assert abs(last[0] - last[1]) > 1e-3


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"rewards": [1.0]}, "lists of one length"),
        ({"prompts": [[5], []]}, "sample 1 has 0 prompt and 1 response tokens"),
        ({"responses": [[], [1]]}, "sample 0 has 1 prompt and 0 response tokens"),
        ({"rewards": [1.0, float("nan")]}, "the reward of sample 1 is nan"),
        ({"logprobs": [[-1.0], []]}, "sample 1 has 0 logprobs for 1 response tokens"),
        ({"responses": [[1], [70]]}, "sample 1 has token 70; the model's are the numbers 0 to 69"),
        ({"prompts": ["a", "b"]}, "sample 0 has token 'a'"),
        ({"groups": [0, 1]}, "grpo compares .* every advantage would be 0"),
        ({}, "grpo compares .* every advantage would be 0"),
    ],
)
def test_samples_that_cannot_be_learned_from(change: dict[str, Any], words: str) -> None:
    given: dict[str, Any] = {"prompts": [[5], [6]], "responses": [[1], [1]], "rewards": [1.0, 0.0]}
    with pytest.raises(ConfigError, match=words):
        check_batch(PPOBatch(**(given | change)), 70, estimator("grpo"))


def test_what_remax_compares_with_must_be_there() -> None:
    given: dict[str, Any] = {"prompts": [[5], [6]], "responses": [[1], [1]], "rewards": [1.0, 0.0]}
    with pytest.raises(ConfigError, match="remax compares with a greedy answer.* no baselines"):
        check_batch(PPOBatch(**given), 70, estimator("remax"))
    with pytest.raises(ConfigError, match="'baselines': 1"):
        check_batch(PPOBatch(**given, baselines=[0.5]), 70, estimator("remax"))
    check_batch(PPOBatch(**given, baselines=[0.5, 0.0]), 70, estimator("remax"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"kl_coef": -1.0}, "kl_coef is -1.0: give a number of at least 0"),
        ({"clip_range": 2.0}, "clip_range is 2.0: give a number"),
        ({"temperature": 0.0}, "temperature is 0.0: give a number above 0"),
        ({"ppo_epochs": 0}, "ppo_epochs is 0"),
        ({"mini_batch_size": 0}, "mini_batch_size is 0"),
        ({"adv_estimator": "gea"}, "gea"),
        ({"model_name": "none"}, "model_name none: there is no none/config.json"),
    ],
)
def test_settings_that_cannot_be_used(
    arguments: dict[str, Any], words: str, tmp_path: Path
) -> None:
    folder = write_folder(tmp_path / "model")
    with pytest.raises(ConfigError, match=words):
        PPOTrainer(**({"model_name": str(folder)} | arguments))

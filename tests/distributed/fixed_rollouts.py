"""A training set and a script of answers to it: the same rollouts for every layout."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from tiny_models import EOS, VOCAB_SIZE

from megarl.config.schema import Config

NUM_PROMPTS = 12
SAMPLES = 2


def write_fixed_rollouts(folder: Path) -> None:
    """prompts.jsonl and script.jsonl; ragged prompts and answers, some of them cut off."""
    dice = random.Random(5)
    prompts, script = [], []
    for prompt_id in range(NUM_PROMPTS):
        words = [f"w{dice.randrange(2, VOCAB_SIZE)}" for _ in range(dice.randrange(1, 7))]
        prompts.append({"prompt": " ".join(words), "label": words[0]})
        for _ in range(6):
            tokens = [dice.randrange(2, VOCAB_SIZE) for _ in range(dice.randrange(1, 10))]
            tokens += [EOS] if dice.random() < 0.7 else []
            logprobs = [-dice.uniform(3.5, 5.0) for _ in tokens]
            answer = {"prompt_id": prompt_id, "response_ids": tokens, "logprobs": logprobs}
            script.append(answer)
    _write(folder / "prompts.jsonl", prompts)
    _write(folder / "script.jsonl", script)
    (folder / "reward.py").write_text(REWARD)


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


REWARD = '''"""A reward that differs from sample to sample, as a whole or word by word."""

from megarl.rewards.base import StepRewards


def reward(prompts, responses):
    """The share of even words, less something for length."""
    numbers = [[int(word[1:]) for word in text.split()] for text in responses]
    return [sum(n % 2 == 0 for n in row) / max(len(row), 1) - 0.03 * len(row) for row in numbers]


def by_word(prompts, responses):
    """A tenth for each even word, when it ends, and less for the others; and what all are worth."""
    out = []
    for text, whole in zip(responses, reward(prompts, responses)):
        ends, at = [], 0
        for word in text.split():
            at = text.index(word, at) + len(word)
            ends.append((at, 0.1 if int(word[1:]) % 2 == 0 else -0.05 * int(word[1:]) / 64))
        out.append(StepRewards(ends, whole))
    return out
'''


def fixed_config(folder: Path, run_dir: Path) -> Config:
    """Three steps of PPO: GAE, KL in the reward, two mini-batches, two epochs.

    Every mini-batch of 12 rows makes six micro-batches on one slice, which is three per stage of
    PP2, and three on each of two slices.
    """
    config = Config()
    config.run.dir, config.run.steps, config.run.export = str(run_dir), 3, False
    config.data.train_path = str(folder / "prompts.jsonl")
    config.data.max_prompt_length, config.data.max_response_length = 8, 10
    config.data.rollout_batch_size, config.data.n_samples_per_prompt = NUM_PROMPTS, SAMPLES
    algorithm = config.algorithm
    algorithm.global_batch_size, algorithm.micro_batch_size, algorithm.ppo_epochs = 12, 2, 2
    algorithm.kl_coef, algorithm.lam, algorithm.gamma = 0.05, 0.95, 0.99
    algorithm.entropy_coef = 0.01
    config.actor.optimizer.lr, config.critic.optimizer.lr = 3e-4, 1e-3
    config.reward.function = str(folder / "reward.py") + ":reward"
    config.rollout.engine = "scripted"
    config.rollout.engine_args = {"script": str(folder / "script.jsonl")}
    config.weight_sync.canary = False
    config.observe.use_tensorboard = config.observe.progress = False
    config.observe.logprob_diff_mean_limit = config.observe.logprob_diff_p99_limit = 0.0
    return config

"""A pipeline small enough to be run twice: fine-tuning, then PPO that is slow enough to be met."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from fixed_rollouts import write_fixed_rollouts

STEPS = 8
REWARD = '''"""A reward that differs from sample to sample, and takes its time."""

import time


def reward(prompts, responses):
    """The share of even words, less something for length."""
    time.sleep(0.5)
    numbers = [[int(word[1:]) for word in text.split()] for text in responses]
    return [sum(n % 2 == 0 for n in row) / max(len(row), 1) - 0.03 * len(row) for row in numbers]
'''


def write_pipeline(folder: Path, model: str) -> Path:
    """The pipeline's file; both stages run on two ranks, PPO keeps a checkpoint of every step."""
    write_fixed_rollouts(folder)
    (folder / "reward.py").write_text(REWARD)
    prompts = str(folder / "prompts.jsonl")
    config: dict[str, Any] = {
        "run": {"steps": STEPS, "world_size": 2},
        "actor": {"model": {"path": model}, "optimizer": {"lr": 3e-3}, "mesh": "p2"},
        "critic": {"optimizer": {"lr": 3e-3}, "mesh": "p2"},
        "data": {
            "train_path": prompts, "response_column": "label", "rollout_batch_size": 8,
            "max_prompt_length": 8, "max_response_length": 16,
        },
        "algorithm": {"global_batch_size": 8},
        "rollout": {"engine": "transformers"},
        "reward": {"function": str(folder / "reward.py") + ":reward"},
        "observe": {"progress": False, "use_tensorboard": False},
    }  # fmt: skip
    (folder / "one.yaml").write_text(yaml.safe_dump(config))
    ppo = {
        "actor.model.path": "${base.model}",
        "algorithm": {"global_batch_size": 4, "kl_coef": 0.05},
        "checkpoint.save_interval": 1,
    }
    stages = [
        {"name": "base", "command": "sft", "config": "one.yaml"},
        {"name": "ppo", "command": "train", "config": "one.yaml", "overrides": ppo},
    ]
    file = folder / "small.yaml"
    file.write_text(yaml.safe_dump({"dir": str(folder / "out"), "stages": stages}))
    return file


def checkpointed(run: Path) -> int:
    """Step of the newest whole checkpoint; 0 where there is none."""
    try:
        return int((run / "checkpoints/latest_checkpointed_iteration.txt").read_text())
    except (OSError, ValueError):
        return 0

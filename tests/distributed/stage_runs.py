"""Small runs of the stages that learn from examples, on two ranks."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import yaml
from indexed_corpus import write_corpus
from tiny_models import EOS, VOCAB_SIZE, TinyModels

STEPS = 4
STAGES = ("pretrain", "sft", "reward")


def write_stage(folder: Path, stage: str, tiny: TinyModels, **checkpoint: Any) -> None:
    """Data and config.yaml: two ranks, evaluations, a schedule, a checkpoint every step."""
    folder.mkdir(parents=True, exist_ok=True)
    model = tiny("llama-reward" if stage == "reward" else "llama")
    config: dict[str, dict[str, Any]] = {
        "run": {"dir": str(folder / "run"), "steps": STEPS, "world_size": 2, "eval_interval": 2},
        "actor": {
            "model": {"path": model}, "mesh": "p2",
            "optimizer": {"lr": 3e-3, "lr_decay_style": "cosine", "lr_decay_steps": 9},
        },
        "data": _data(folder, stage),
        "algorithm": {"global_batch_size": 8, "micro_batch_size": 2},
        "checkpoint": {"save_interval": 1} | checkpoint,
        "observe": {"progress": False},
    }  # fmt: skip
    (folder / "config.yaml").write_text(yaml.safe_dump(config))


def _data(folder: Path, stage: str) -> dict[str, Any]:
    dice = random.Random(7)

    def words(most: int) -> str:
        return " ".join(f"w{dice.randrange(2, VOCAB_SIZE)}" for _ in range(dice.randint(1, most)))

    if stage == "pretrain":
        documents = [
            [dice.randrange(2, VOCAB_SIZE) for _ in range(dice.randint(3, 30))] + [EOS]
            for _ in range(60)
        ]
        prefix = write_corpus(folder / "corpus", documents)
        indexed = {"blend": [prefix], "split": "80,20,0", "seq_length": 16}
        return {"indexed": indexed, "eval_size": 4}
    columns = ("response",) if stage == "sft" else ("chosen", "rejected")
    # Eleven rows: an epoch ends in the middle of the second step.
    rows = [{"prompt": words(6)} | {name: words(8) for name in columns} for _ in range(11)]
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    lengths = {"max_prompt_length": 8, "max_response_length": 12}
    return {"train_path": str(path), "eval_path": str(path), "eval_size": 5, **lengths}

"""What a pipeline starts from: the demo's folder, and a data set for each stage before PPO.

    python -m examples.pipeline_assets --dir D --seed S

Each stage leaves something to the next: the texts to pretrain on are a careless author's, those to
finetune on are better, the preferences tell right from wrong, and PPO has the rest to learn.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from examples.demo_assets import arguments, write_assets
from megarl.data.rows import write_rows
from megarl.data.seeds import stable_hash
from megarl.data.tasks import careless_text

SFT_SIZE, SFT_EVASIVE, SFT_WRONG = 3000, 0.40, 0.05
"""Rows to finetune on, and the shares of them that are no answer and a wrong one."""
PAIRS_PER_PROMPT, EVADED = 3, 0.25
"""Preferences of a training prompt; the share of rejected answers that are no number."""


def write_pipeline_assets(
    folder: Path, seed: int, *, train_size: int = 3400, heldout_size: int = 300
) -> None:
    """Write the data of all stages, tokenizer and config into `folder`; same seed, same bytes.

    Beside what `write_assets` writes: pretrain.jsonl (text), sft.jsonl and sft-heldout.jsonl
    (prompt, response; the held-out ones are right), preferences.jsonl and
    preferences-heldout.jsonl (prompt, chosen, rejected). Answers begin with the space that a model
    writes after the prompt.
    """
    write_assets(folder, seed, train_size=train_size, heldout_size=heldout_size)
    train, heldout = (_rows(folder / f"{name}.jsonl") for name in ("train", "heldout"))
    careless = _rows(folder / "texts.jsonl")
    texts = [{"text": row["prompt"] + row["completion"]} for row in careless]
    write_rows(folder / "pretrain.jsonl", texts)
    better = careless_text(train[:SFT_SIZE], SFT_EVASIVE, SFT_WRONG, stable_hash(seed, "sft"))
    answers = [{"prompt": row["prompt"], "response": row["completion"]} for row in better]
    write_rows(folder / "sft.jsonl", answers)
    right = careless_text(heldout, 0.0, 0.0, seed)
    held_answers = [{"prompt": row["prompt"], "response": row["completion"]} for row in right]
    write_rows(folder / "sft-heldout.jsonl", held_answers)
    pairs = [
        pair
        for copy in range(PAIRS_PER_PROMPT)
        for pair in preferences(train, stable_hash(seed, "preferences", copy))
    ]
    write_rows(folder / "preferences.jsonl", pairs)
    held = preferences(heldout, stable_hash(seed, "preferences-heldout"))
    write_rows(folder / "preferences-heldout.jsonl", held)


def preferences(entries: Sequence[dict[str, Any]], seed: int) -> list[dict[str, str]]:
    """For each prompt the right answer, and one that is not: a number near it, or none."""
    right = careless_text(entries, 0.0, 0.0, seed)
    wrong = careless_text(entries, EVADED, 1.0 - EVADED, seed)
    return [
        {"prompt": a["prompt"], "chosen": a["completion"], "rejected": b["completion"]}
        for a, b in zip(right, wrong, strict=True)
    ]


def _rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


if __name__ == "__main__":
    parsed = arguments(__doc__ or "")
    write_pipeline_assets(parsed.dir, parsed.seed)

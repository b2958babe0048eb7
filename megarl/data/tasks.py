"""Demo data from reasoning-gym's generators, and careless text to pretrain a model on."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any, Literal

from megarl.data.seeds import stable_hash
from megarl.errors import ConfigError, DataError

Split = Literal["train", "heldout"]

# Drawn in vain for one new question, before a task counts as exhausted.
_MAX_MISSES = 2000


def write_task(
    path: str | Path,
    tasks: Sequence[Mapping[str, Any]],
    size: int,
    seed: int,
    *,
    split: Split = "train",
    heldout_percent: int = 10,
    prompt_format: str = "{question}",
) -> None:
    """Writes `size` rows of reasoning-gym questions as jsonl: prompt, label, source, entry.

    tasks: {"name": "chain_sum", "params": {...}, "weight": 1.0} each; params go to the generator,
    weight is the task's share of the rows. entry is what the task's own scorer needs. Prompts are
    distinct. A prompt belongs to one split by the hash of its text alone, so the two splits never
    share one, whatever their seeds and sizes. prompt_format may use {question}, {answer} and the
    entry's metadata, such as {expression}.

    ConfigError for bad tasks; DataError when a task has too few distinct questions.
    """
    if split not in ("train", "heldout") or not 0 < heldout_percent < 100:
        raise ConfigError(
            f"split is {split!r} and heldout_percent {heldout_percent}: give train or heldout, "
            "and 1 to 99"
        )
    counts = _shares(tasks, size)
    rows: list[dict[str, Any]] = []
    seen: set[str] = set()
    for index, (task, count) in enumerate(zip(tasks, counts, strict=True)):
        name, params = str(task["name"]), dict(task.get("params", {}))
        found = misses = 0
        for row in _questions(name, params, stable_hash(seed, index) % 2**31, prompt_format):
            if found == count or misses == _MAX_MISSES:
                break
            held = stable_hash(row["prompt"]) % 100 < heldout_percent
            if held != (split == "heldout") or row["prompt"] in seen:
                misses += 1
                continue
            seen.add(row["prompt"])
            rows.append(row)
            found, misses = found + 1, 0
        if found < count:
            raise DataError(
                f"task {name} has only {found} distinct {split} questions with {params}, and "
                f"{count} are asked for: lower the size or widen the params"
            )
    Random(seed).shuffle(rows)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(_to_json(row) + "\n" for row in rows), encoding="utf-8")


def _shares(tasks: Sequence[Mapping[str, Any]], size: int) -> list[int]:
    """Rows of each task, in proportion to the weights; they add up to size."""
    for task in tasks:
        unknown = task.keys() - {"name", "params", "weight"}
        if unknown or "name" not in task:
            raise ConfigError(f"task {dict(task)}: give name, and maybe params and weight")
    weights = [float(task.get("weight", 1.0)) for task in tasks]
    if not weights or min(weights) < 0 or sum(weights) <= 0:
        raise ConfigError(f"the tasks' weights are {weights}: give at least one positive weight")
    exact = [size * weight / sum(weights) for weight in weights]
    counts = [int(share) for share in exact]
    by_rest = sorted(range(len(exact)), key=lambda i: (counts[i] - exact[i], i))
    for i in by_rest[: size - sum(counts)]:
        counts[i] += 1
    return counts


def _questions(
    name: str, params: Mapping[str, Any], seed: int, prompt_format: str
) -> Iterator[dict[str, Any]]:
    """Endless rows of one generator."""
    try:
        import reasoning_gym
    except ImportError as error:
        raise ConfigError("demo tasks need reasoning-gym: pip install reasoning-gym") from error
    try:
        dataset = reasoning_gym.create_dataset(name, size=2**31 - 1, seed=seed, **params)
    except (ValueError, TypeError, AssertionError) as error:
        raise ConfigError(f"reasoning-gym refuses task {name!r} with {params}: {error}") from error
    for index in range(len(dataset)):
        entry = dataset[index]
        fields = {**entry["metadata"], "question": entry["question"], "answer": entry["answer"]}
        try:
            prompt = prompt_format.format_map(fields)
        except KeyError as error:
            raise ConfigError(
                f"prompt_format {prompt_format!r} names {error}; task {name} has: "
                f"{', '.join(sorted(fields))}"
            ) from error
        yield {"prompt": prompt, "label": entry["answer"], "source": name, "entry": entry}


def _to_json(row: Mapping[str, Any]) -> str:
    try:
        return json.dumps(row, ensure_ascii=False)
    except TypeError as error:
        raise DataError(f"task {row['source']}: its entry cannot be written: {error}") from error


def careless_text(
    entries: Sequence[Mapping[str, Any]],
    evasive_share: float,
    wrong_share: float,
    seed: int,
    *,
    separator: str = " ",
) -> list[dict[str, str]]:
    """A prompt and its completion per entry, for pretraining a model that has something to learn.

    entries: rows with prompt and label, a whole number, as `write_task` writes them. Of the
    answers exactly round(evasive_share * n) are "?", round(wrong_share * n) are another number
    near the right one, and the others are right; which ones, the seed decides. ConfigError for
    shares that are negative or over 1 together; DataError for a label that is no whole number.
    """
    if min(evasive_share, wrong_share) < 0 or evasive_share + wrong_share > 1:
        raise ConfigError(
            f"evasive_share {evasive_share} and wrong_share {wrong_share}: give shares of at "
            "least 0 that are at most 1 together"
        )
    random = Random(seed)
    order = random.sample(range(len(entries)), len(entries))
    num_evasive = round(evasive_share * len(entries))
    num_bad = min(num_evasive + round(wrong_share * len(entries)), len(entries))
    answers = [str(entry["label"]) for entry in entries]
    for i in order[num_evasive:num_bad]:
        if not re.fullmatch(r"-?\d+", answers[i]):
            raise DataError(f"entry {i}: label {answers[i]!r} is no whole number to get wrong")
        answers[i] = str(int(answers[i]) + random.choice([-1, 1]) * random.randint(1, 9))
    for i in order[:num_evasive]:
        answers[i] = "?"
    return [
        {"prompt": str(entry["prompt"]), "completion": separator + answer}
        for entry, answer in zip(entries, answers, strict=True)
    ]

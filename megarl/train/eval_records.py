"""What an evaluation leaves: files with every answer, a table, and a few lines in checkpoints."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from megarl.observe.report import SampleAnswer, sources_table
from megarl.runtime.aside import write_whole
from megarl.train.evaluate import Answer, Evaluation
from megarl.types import Prompt

SHOWN_ANSWERS = 10
"""Greedy answers that the report of a run shows."""


@dataclass(frozen=True, slots=True)
class EvaluationRecord:
    """What a run keeps of one evaluation, in its checkpoints too; the answers are in files."""

    metrics: dict[str, float]
    shown: list[tuple[str, float]]
    """Text and reward of the greedy answers to the first prompts; on universe rank 0 alone."""


def record_of(evaluation: Evaluation) -> EvaluationRecord:
    """What is kept of it."""
    shown = [(one.text, one.reward) for one in evaluation.answers[:SHOWN_ANSWERS]]
    return EvaluationRecord(evaluation.metrics, shown)


def write_answers(
    folder: Path, prompts: Sequence[Prompt], evaluation: Evaluation, suffix: str = ""
) -> None:
    """answers<suffix>.jsonl and, where there are samples, samples<suffix>.jsonl: a line for each.

    They appear when they are whole, in place of older ones. Raises RunError where the disk is full.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / f"answers{suffix}.jsonl", _lines(prompts, evaluation.answers))
    if evaluation.samples:
        write_whole(folder / f"samples{suffix}.jsonl", _lines(prompts, evaluation.samples))


def _lines(prompts: Sequence[Prompt], answers: Sequence[Answer]) -> Iterator[str]:
    for one in answers:
        prompt = prompts[one.row]
        is_sample = one.sample is not None
        line: dict[str, Any] = {
            "prompt": prompt.text,
            "label": prompt.label,
            "source": prompt.source,
            **({"sample": one.sample} if is_sample else {}),
            "text": one.text,
            **({"answer": one.read} if is_sample else {}),
            "reward": one.reward,
            "right": one.right,
            "finished": one.finished,
            "token_ids": list(one.token_ids),
        }
        yield json.dumps(line) + "\n"


def evaluation_table(metrics: Mapping[str, float], prompts: Sequence[Prompt], title: str) -> Table:
    """An evaluation's metrics in a row for each source, and one for all."""
    return sources_table(metrics, Counter(prompt.source for prompt in prompts), title)


def paired_answers(
    evaluations: Mapping[int, EvaluationRecord], prompts: Sequence[Prompt]
) -> list[SampleAnswer]:
    """The first prompts' answers at the first and at the last evaluation."""
    before, after = evaluations[min(evaluations)], evaluations[max(evaluations)]
    return [
        SampleAnswer(prompt.question or prompt.text, prompt.label, was, now, was_worth, worth)
        for prompt, (was, was_worth), (now, worth) in zip(
            prompts, before.shown, after.shown, strict=False
        )
    ]

"""The end of a run: exported model, kept answers, curves, and a table of what was reached."""

from __future__ import annotations

import json
from pathlib import Path

from megarl.models.transformer_config import torch_dtype
from megarl.observe.curves import draw_run
from megarl.observe.report import SampleAnswer, answers_table, show, summary_table, to_text
from megarl.observe.summary import summarize, table_rows
from megarl.roles.export import export_hf
from megarl.train.evaluate import Evaluation
from megarl.train.run import Run

SAMPLE_ANSWERS = 10


def finish_run(run: Run) -> None:
    """Write everything that outlasts the run; all ranks call it."""
    folder = Path(run.config.run.dir)
    if run.config.run.export:
        with run.verb("export"):
            path = run.actor_path
            dtype = torch_dtype(run.config.actor.model.dtype)
            export_hf(run.universe, run.actor, run.shape, dtype, folder / "model", path)
    run.close_books()
    if run.universe.rank == 0:
        _report(run, folder)


def close_run(run: Run) -> None:
    """Close the books and free the engines; all ranks call it."""
    run.close_books()
    run.universe.barrier()
    if run.rollout.here:
        run.rollout.engine.close()


def _report(run: Run, folder: Path) -> None:
    evaluations = run.evaluations
    for step, evaluation in evaluations.items():
        write_answers(folder / f"answers-step{step}.jsonl", evaluation)
    found = {step: one.accuracy for step, one in evaluations.items()}
    accuracy = {step: value for step, value in found.items() if value is not None}
    summary = summarize(folder / "metrics.jsonl", accuracy)
    (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    table = summary_table(table_rows(summary), ("", "first", "last"), f"Run {folder}")
    show(table)
    text = to_text(table)
    if len(evaluations) > 1:
        answers = answers_table(paired_answers(evaluations))
        show(answers)
        text += to_text(answers)
    (folder / "report.txt").write_text(text + draw_run(folder))


def write_answers(path: Path, evaluation: Evaluation) -> None:
    """One json object a line: prompt, label, text, reward, finished, token ids."""
    rows = (
        {
            "prompt": one.prompt,
            "label": one.label,
            "text": one.text,
            "reward": one.reward,
            "finished": one.finished,
            "token_ids": list(one.token_ids),
        }
        for one in evaluation.answers
    )
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def paired_answers(evaluations: dict[int, Evaluation]) -> list[SampleAnswer]:
    """The first prompts' answers at the first and at the last evaluation."""
    before, after = evaluations[min(evaluations)], evaluations[max(evaluations)]
    pairs = zip(before.answers[:SAMPLE_ANSWERS], after.answers, strict=False)
    return [SampleAnswer(b.question, b.label, b.text, a.text, b.reward, a.reward) for b, a in pairs]

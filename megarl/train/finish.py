"""The end of a run: exported model, curves, and tables of what was reached."""

from __future__ import annotations

import json
from pathlib import Path

from megarl.models.transformer_config import torch_dtype
from megarl.observe.curves import draw_run
from megarl.observe.report import answers_table, show, summary_table, to_text
from megarl.observe.summary import summarize, table_rows
from megarl.roles.export import export_hf
from megarl.train.eval_records import evaluation_table, paired_answers
from megarl.train.run import Run


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
    found = {step: one.metrics.get("eval/accuracy") for step, one in evaluations.items()}
    accuracy = {step: value for step, value in found.items() if value is not None}
    summary = summarize(folder / "metrics.jsonl", accuracy)
    (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    tables = [summary_table(table_rows(summary), ("", "first", "last"), f"Run {folder}")]
    if evaluations:
        last = max(evaluations)
        title = f"Evaluation after step {last}"
        tables.append(evaluation_table(evaluations[last].metrics, run.eval_prompts, title))
    if len(evaluations) > 1:
        tables.append(answers_table(paired_answers(evaluations, run.eval_prompts)))
    for table in tables:
        show(table)
    (folder / "report.txt").write_text("".join(map(to_text, tables)) + draw_run(folder))

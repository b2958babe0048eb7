"""The end of a run: exported model, kept answers, curves, and a table of what was reached."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from megarl.models.transformer_config import torch_dtype
from megarl.observe.curves import plot_curves
from megarl.observe.metrics_file import read_metrics
from megarl.observe.report import SampleAnswer, answers_table, show, summary_table, to_text
from megarl.roles.export import export_hf
from megarl.train.evaluate import Evaluation
from megarl.train.run import Run

SAMPLE_ANSWERS = 10


def finish_run(run: Run) -> None:
    """Write everything that outlasts the run, then free the engines; all ranks call it."""
    folder = Path(run.config.run.dir)
    if run.config.run.export:
        with run.verb("export"):
            path = run.actor_path
            dtype = torch_dtype(run.config.actor.model.dtype)
            export_hf(run.universe, run.actor, run.shape, dtype, folder / "model", path)
    if run.books.logger is not None:
        run.books.logger.close()
        if run.books.progress is not None:
            run.books.progress.close()
        _report(run, folder)
    run.universe.barrier()
    if run.rollout.here:
        run.rollout.engine.close()


def _report(run: Run, folder: Path) -> None:
    evaluations = run.books.evaluations
    for step, evaluation in evaluations.items():
        write_answers(folder / f"answers-step{step}.jsonl", evaluation)
    summary = summarize(folder / "metrics.jsonl", evaluations, run.step)
    (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    plot_curves(folder / "metrics.jsonl", folder / "curves.png", title=str(folder))
    table = summary_table(table_rows(summary), ("", "first", "last"), f"Run {folder}")
    show(table)
    text = to_text(table)
    if len(evaluations) > 1:
        answers = answers_table(paired_answers(evaluations))
        show(answers)
        text += to_text(answers)
    (folder / "report.txt").write_text(text)


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


def summarize(
    metrics_path: Path, evaluations: dict[int, Evaluation], last_step: int
) -> dict[str, Any]:
    """Figures of the whole run: first and last step, means, totals and the largest difference.

    Steps after `last_step` are of an earlier, longer run in the same folder.
    """
    history = sorted(read_metrics(metrics_path).items())
    steps = [m for step, m in history if "reward_mean" in m and step <= last_step]
    first, last = steps[0], steps[-1]
    names = ("reward_mean", "actor/ref_kl", "actor/entropy", "response_length/mean")
    diff = "train_rollout_logprob_abs_diff"
    timing = sorted({name for m in steps for name in m if name.startswith("timing_s/")})
    accuracy = {str(step): one.accuracy for step, one in sorted(evaluations.items())}
    return {
        "steps": len(steps),
        "accuracy": accuracy,
        "accuracy_first": next(iter(accuracy.values()), None),
        "accuracy_last": next(reversed(accuracy.values()), None),
        "first": {name: first[name] for name in names if name in first},
        "last": {name: last[name] for name in names if name in last},
        "mean": {
            name: sum(m.get(name, 0.0) for m in steps) / len(steps)
            for name in (*timing, "perf/tokens_per_s", "perf/generated_tokens_per_s")
        },
        "reshard_bytes_received": last["reshard/bytes_received"],
        "reshard_bytes_lower_bound": last["reshard/bytes_lower_bound"],
        "logprob_diff_max": max(m.get(f"{diff}/max", 0.0) for m in steps),
        "logprob_diff_mean": max(m.get(f"{diff}/mean", 0.0) for m in steps),
        "peak_memory_gib": max(m["perf/peak_memory_gib"] for m in steps),
        "tensorboard": str(metrics_path.parent),
    }


def table_rows(summary: dict[str, Any]) -> dict[str, tuple[float | str, ...]]:
    """The summary as rows of (first, last)."""
    rows: dict[str, tuple[float | str, ...]] = {}
    if summary["accuracy_first"] is not None:
        rows["held-out accuracy"] = (summary["accuracy_first"], summary["accuracy_last"])
    for name, value in summary["last"].items():
        rows[name] = (summary["first"].get(name, ""), value)
    for name, value in summary["mean"].items():
        rows[f"{name} (mean)"] = ("", value)
    received, bound = summary["reshard_bytes_received"], summary["reshard_bytes_lower_bound"]
    ratio = received / bound if bound else 1.0
    rows["reshard bytes / lower bound"] = (f"{received:,.0f} / {bound:,.0f}", f"{ratio:.3f}")
    rows["largest train/rollout log-prob difference"] = ("", f"{summary['logprob_diff_max']:.2e}")
    rows["peak memory, all ranks (GiB)"] = ("", summary["peak_memory_gib"])
    rows["TensorBoard"] = ("", summary["tensorboard"])
    return rows

"""The end of a pipeline: a table, report.txt, report.json, and the curve of each stage's metric."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.table import Table

from megarl.errors import DataError
from megarl.observe.curves import Panel, Series, draw_panels
from megarl.observe.metrics_file import METRICS_FILE, read_metrics
from megarl.observe.report import show, summary_table, to_text
from megarl.observe.summary import table_rows
from megarl.pipeline.records import Records
from megarl.pipeline.spec import Pipeline, Stage

USUAL: Mapping[str, tuple[str, ...]] = {
    "pretrain": ("probability", "loss"),
    "sft": ("probability", "loss"),
    "reward": ("accuracy", "loss"),
    "train": ("reward_mean",),
    "eval": ("eval/accuracy",),
}
"""Command -> the metric that is shown; the first that its metrics have."""
CURVES = "curves.png"


@dataclass(frozen=True, slots=True)
class StageReport:
    """What is shown of one stage."""

    stage: str
    command: str
    state: str
    seconds: float
    metric: str | None
    steps: tuple[int, ...]
    values: tuple[float, ...]
    folder: str

    def cells(self) -> tuple[float | str, ...]:
        """Its row: command, metric, first, last, seconds."""
        ends: tuple[float | str, ...] = ("", "")
        if self.values:
            ends = (self.values[0] if len(self.values) > 1 else "", self.values[-1])
        time = f"{self.seconds:.0f} s" if self.state == "done" else self.state
        return (self.command, self.metric or "", *ends, time)


def write_report(pipeline: Pipeline) -> list[StageReport]:
    """Show the tables, and write report.txt, report.json and curves.png into the folder."""
    reports = [_look(pipeline, stage) for stage in pipeline.stages]
    tables = [_table(pipeline, reports)]
    summaries = {}
    for stage in pipeline.stages:
        file = stage.folder / "summary.json"
        if stage.command is not None and file.exists():
            summaries[stage.name] = json.loads(file.read_text())
            rows = table_rows(summaries[stage.name])
            tables.append(summary_table(rows, ("", "first", "last"), f"Stage {stage.name}"))
    text = ""
    for table in tables:
        show(table)
        text += to_text(table)
    text += _draw(pipeline, reports)
    (pipeline.folder / "report.txt").write_text(text)
    content = {
        "name": pipeline.name,
        "seed": pipeline.seed,
        "stages": [asdict(report) for report in reports],
        "summaries": summaries,
    }
    (pipeline.folder / "report.json").write_text(json.dumps(content, indent=1) + "\n")
    return reports


def _look(pipeline: Pipeline, stage: Stage) -> StageReport:
    record = Records(pipeline.folder).read(stage.name)
    metric, steps, values = _metric(stage)
    return StageReport(
        stage=stage.name,
        command=stage.command or "run",
        state="not begun" if record is None else record.state,
        seconds=0.0 if record is None else record.seconds,
        metric=metric,
        steps=steps,
        values=values,
        folder=str(stage.folder),
    )


def _metric(stage: Stage) -> tuple[str | None, tuple[int, ...], tuple[float, ...]]:
    """Name, steps and values of what is shown; a stage without it has none."""
    asked = (stage.metric,) if stage.metric else USUAL.get(stage.command or "", ())
    rows = _rows(stage)
    for name in asked:
        points = [(step, row[name]) for step, row in rows.items() if name in row]
        if points:
            return name, tuple(step for step, _ in points), tuple(value for _, value in points)
    missing = f"{stage.metric} (not logged)" if stage.metric and rows else None
    return missing, (), ()


def _rows(stage: Stage) -> dict[int, dict[str, float]]:
    found = stage.folder / "eval" / "eval.json"
    if stage.command == "eval":
        return {0: json.loads(found.read_text())} if found.exists() else {}
    try:
        return read_metrics(stage.folder / METRICS_FILE)
    except DataError:
        return {}


def _table(pipeline: Pipeline, reports: list[StageReport]) -> Table:
    heads = ("stage", "command", "metric", "first", "last", "time")
    rows = {report.stage: report.cells() for report in reports}
    return summary_table(rows, heads, f"Pipeline {pipeline.name}")


def _draw(pipeline: Pipeline, reports: list[StageReport]) -> str:
    """Draw the curves; what is to be said about them."""
    chosen: list[tuple[Panel, Series]] = []
    for report in reports:
        if len(report.values) > 1 and report.metric is not None:
            panel = Panel(f"{report.stage}: {report.metric}", (report.metric,))
            chosen.append((panel, {report.metric: (list(report.steps), list(report.values))}))
    if not chosen:
        return ""
    if importlib.util.find_spec("matplotlib") is None:
        return f"There is no {CURVES}: matplotlib is not installed.\n"
    path: Path = draw_panels(chosen, pipeline.folder / CURVES, title=f"Pipeline {pipeline.name}")
    return f"Curves: {path}\n"

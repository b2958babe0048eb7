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
from megarl.pipeline.records import Record, Records

USUAL: Mapping[str, tuple[str, ...]] = {
    "pretrain": ("probability", "loss"),
    "sft": ("probability", "loss"),
    "reward": ("accuracy", "loss"),
    "train": ("reward_mean",),
    "eval": ("eval/accuracy", "eval/reward_mean"),
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


def write_report(folder: Path) -> None:
    """Show the tables, and write report.txt, report.json and curves.png into the folder."""
    records = Records(folder)
    index = records.index()
    found = [(name, records.read(name)) for name in index["stages"]]
    reports = [_look(name, record) for name, record in found]
    title = f"Pipeline {index['name']}"
    tables = [_table(title, reports)]
    summaries = {}
    for report in reports:
        file = Path(report.folder) / "summary.json"
        if report.command != "run" and report.folder and file.exists():
            summaries[report.stage] = json.loads(file.read_text())
        if report.command == "train" and report.stage in summaries:
            rows = table_rows(summaries[report.stage])
            tables.append(summary_table(rows, ("", "first", "last"), f"Stage {report.stage}"))
    text = ""
    for table in tables:
        show(table)
        text += to_text(table)
    text += _draw(folder, title, reports)
    (folder / "report.txt").write_text(text)
    content = index | {"stages": [asdict(report) for report in reports], "summaries": summaries}
    (folder / "report.json").write_text(json.dumps(content, indent=1) + "\n")


def _look(name: str, record: Record | None) -> StageReport:
    if record is None:
        return StageReport(name, "", "not begun", 0.0, None, (), (), "")
    metric, steps, values = _metric(record)
    return StageReport(
        stage=name,
        command=record.command,
        state=record.state,
        seconds=record.seconds,
        metric=metric,
        steps=steps,
        values=values,
        folder=record.folder,
    )


def _metric(record: Record) -> tuple[str | None, tuple[int, ...], tuple[float, ...]]:
    """Name, steps and values of what is shown; a stage without it has none."""
    asked = (record.metric,) if record.metric else USUAL.get(record.command, ())
    rows = _rows(record)
    for name in asked:
        points = [(step, row[name]) for step, row in rows.items() if name in row]
        if points:
            return name, tuple(step for step, _ in points), tuple(value for _, value in points)
    missing = f"{record.metric} (not logged)" if record.metric and rows else None
    return missing, (), ()


def _rows(record: Record) -> dict[int, dict[str, float]]:
    folder = Path(record.folder)
    found = folder / "eval" / "eval.json"
    if record.command == "eval":
        return {0: json.loads(found.read_text())} if found.exists() else {}
    try:
        return read_metrics(folder / METRICS_FILE)
    except DataError:
        return {}


def _table(title: str, reports: list[StageReport]) -> Table:
    heads = ("stage", "command", "metric", "first", "last", "time")
    rows = {report.stage: report.cells() for report in reports}
    return summary_table(rows, heads, title)


def _draw(folder: Path, title: str, reports: list[StageReport]) -> str:
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
    path: Path = draw_panels(chosen, folder / CURVES, title=title)
    return f"Curves: {path}\n"

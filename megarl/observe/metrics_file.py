"""metrics.jsonl: one JSON object a line, with the step and the metrics logged for it."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path

from megarl.errors import DataError

METRICS_FILE = "metrics.jsonl"

Metrics = dict[str, float]


class MetricsWriter:
    """Appends to the file; each line is on disk's way before `write` returns."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("ab")
        # What a killed run wrote half must not swallow the next line.
        if self._file.tell():
            with path.open("rb") as file:
                file.seek(-1, os.SEEK_END)
                if file.read() != b"\n":
                    self._file.write(b"\n")

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Writes one line; numbers that JSON does not have become null."""
        row = {k: v if math.isfinite(v) else None for k, v in metrics.items()}
        self._file.write(json.dumps({"step": step, **row}).encode() + b"\n")
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def drop_after(path: Path, step: int) -> None:
    """Cut the file before the first line of a later step, or one that is no line of metrics.

    A resumed run writes those steps again; a writer that has the file open goes on at its new end.
    """
    if not path.exists():
        return
    kept = 0
    for line in path.read_bytes().splitlines(keepends=True):
        if not line.endswith(b"\n") or _step_of(line) > step:
            break
        kept += len(line)
    os.truncate(path, kept)


def _step_of(line: bytes) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf


def read_metrics(path: str | Path) -> dict[int, Metrics]:
    """Step -> metrics, steps ascending; null values are left out.

    A step that was logged several times has the metrics of all lines, the last value winning: a
    resumed run writes the steps since its checkpoint again. A line cut off by a kill is passed
    over. DataError if the file is missing or holds no metrics.
    """
    path = Path(path)
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise DataError(f"metrics {path} cannot be read: {error}") from error
    steps: dict[int, Metrics] = {}
    for line in lines:
        try:
            row = json.loads(line)
            step = int(row.pop("step"))
        except (ValueError, AttributeError, KeyError, TypeError):
            continue
        steps.setdefault(step, {}).update({k: v for k, v in row.items() if v is not None})
    if not steps:
        raise DataError(f"metrics {path} hold no steps: has the run logged anything?")
    return dict(sorted(steps.items()))

"""What a run leaves in its folder, set aside when another run starts there."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

PLANS = "reshard-plan"
"""Folder of what every rank moves in a weight sync."""
RECORDS = (
    "config.yaml", "metrics.jsonl", "summary.json", "report.txt", "curves.png", "eval.json",
    "answers.jsonl", "answers-step*.jsonl", "samples.jsonl", "samples-step*.jsonl",
    "events.out.tfevents.*", PLANS, "checkpoints", "model", "probe.json",
)  # fmt: skip
"""Patterns of one run's files and folders; logs go on."""
RESULTS = ("metrics.jsonl", "eval.json", "checkpoints")
"""What only a run that has begun leaves."""


def holds_run(folder: Path) -> bool:
    """Whether a run has begun in this folder."""
    return any((folder / name).exists() for name in RESULTS)


def set_aside(folder: Path, inputs: Sequence[str] = ()) -> Path | None:
    """Move an earlier run's records into <folder>/previous-<n>, the first that is free.

    inputs: what the next run reads, and what therefore stays. Returns that folder; None where there
    was nothing to move. Raises OSError.
    """
    if not holds_run(folder):
        return None
    read = {Path(path).resolve() for path in inputs}
    found = sorted(
        path
        for pattern in RECORDS
        for path in folder.glob(pattern)
        if not any(each.is_relative_to(path.resolve()) for each in read)
    )
    number = 1
    while (target := folder / f"previous-{number}").exists():
        number += 1
    target.mkdir()
    for half_written in folder.glob("checkpoints/iter_*.partial"):
        shutil.rmtree(half_written)
    for path in found:
        path.rename(target / path.name)
    return target


def keep_plan(folder: Path, rank: int, text: str) -> None:
    """Write a rank's part of the plan of the weight sync."""
    (folder / PLANS).mkdir(parents=True, exist_ok=True)
    (folder / PLANS / f"rank_{rank}.txt").write_text(text)

"""What a run leaves in its folder, set aside when another run starts there."""

from __future__ import annotations

from pathlib import Path

RECORDS = (
    "config.yaml", "metrics.jsonl", "summary.json", "report.txt", "curves.png", "eval.json",
    "answers.jsonl", "answers-step*.jsonl", "events.out.tfevents.*",
)  # fmt: skip
"""Patterns of the files of one run; logs go on, and a model is replaced when the next is whole."""


def set_aside(folder: Path) -> Path | None:
    """Move an earlier run's records into <folder>/previous-<n>, the first that is free.

    Returns that folder; None where there was nothing to move. Raises OSError.
    """
    found = sorted(path for pattern in RECORDS for path in folder.glob(pattern))
    if not any(path.name in ("metrics.jsonl", "eval.json") for path in found):
        return None
    number = 1
    while (target := folder / f"previous-{number}").exists():
        number += 1
    target.mkdir()
    for path in found:
        path.rename(target / path.name)
    return target

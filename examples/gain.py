"""A demo is a pipeline, and a gain that it has to reach."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from megarl.cli.main import main as megarl


def demo(
    pipeline: Path, folder: Path, trained: str, wanted_points: float, overrides: Sequence[str]
) -> int:
    """Run a pipeline; 1 when held-out accuracy of its stage `trained` rose too little, else 0."""
    if status := megarl(["pipeline", str(pipeline), "--dir", str(folder), *overrides]):
        return status
    summary = json.loads((folder / trained / "summary.json").read_text())
    points = 100 * (summary["accuracy_last"] - summary["accuracy_first"])
    enough = points >= wanted_points
    verdict = "rose" if enough else f"rose by less than {wanted_points:g} points"
    sys.stdout.write(f"held-out accuracy {verdict}: {points:+.1f} points\n")
    return 0 if enough else 1


def arguments(text: str, folder: str, wanted_points: float) -> argparse.ArgumentParser:
    """What the demos have in common on their command line."""
    parser = argparse.ArgumentParser(description=text.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dir", type=Path, default=Path(folder))
    parser.add_argument("--steps", type=int, help="training steps; default: the config's")
    parser.add_argument("--wanted-points", type=float, default=wanted_points)
    return parser

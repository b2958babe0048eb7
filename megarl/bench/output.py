"""What benchmarks write beside their tables: the figures as JSON, and as a picture."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from megarl.errors import ConfigError


def add_outputs(parser: argparse.ArgumentParser) -> None:
    """The arguments --json and --png."""
    parser.add_argument("--json", type=Path, help="write the figures here as well")
    parser.add_argument("--png", type=Path, help="draw them here")


def check_outputs(arguments: argparse.Namespace) -> None:
    """ConfigError where a file could not be written at the end."""
    for name in ("json", "png"):
        path = getattr(arguments, name, None)
        if path is not None and (path.is_dir() or not path.absolute().parent.is_dir()):
            raise ConfigError(f"--{name} {path}: give a file in a folder that exists")


def keep(
    arguments: argparse.Namespace,
    found: Mapping[str, Any],
    values: Mapping[str, Sequence[float]],
    label: str,
) -> None:
    """Write what the arguments ask for.

    found: the figures, with their title under "what". values: name -> a number per round, which the
    picture shows as boxes over an axis called `label`.
    """
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n")
    if arguments.png is not None:
        _draw(values, label, found["what"], arguments.png)


def _draw(values: Mapping[str, Sequence[float]], label: str, title: str, path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 0.4 * len(values) + 1.5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.boxplot(
        list(values.values()), orientation="horizontal", tick_labels=list(values), showfliers=False
    )
    axes.set_xlabel(label)
    axes.set_xlim(left=0)
    axes.invert_yaxis()
    axes.set_title(title, fontsize=9)
    axes.grid(axis="x", alpha=0.3)
    figure.savefig(path)

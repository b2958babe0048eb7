"""The run's curves as one picture, from metrics.jsonl."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

from megarl.errors import ConfigError, DataError
from megarl.observe.metrics_file import METRICS_FILE, Metrics, read_metrics

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLORS = ("#2f6fb2", "#d1602b", "#2f9164", "#8e5ab0", "#c23b55", "#7a6a4f", "#3fa7b5", "#8a8a8a",
           "#d8a31a", "#5566aa", "#9bb43c", "#b56a86")  # fmt: skip
_MAX_SERIES = len(_COLORS)
# Points of a curve, from which on its noise is drawn faintly behind a moving mean.
_SMOOTH_FROM = 50


@dataclass(frozen=True, slots=True)
class Panel:
    """One small diagram: metrics whose names match a pattern of `include`, none of `exclude`."""

    title: str
    include: tuple[str, ...]
    exclude: tuple[str, ...] = ()
    unit: str = ""
    stacked: bool = False
    """Areas on top of each other, for parts of a whole."""


PANELS = (
    Panel("Reward", ("reward", "reward_mean", "*reward/mean", "*/reward_mean")),
    Panel("Accuracy", ("*accuracy*",), unit="share right"),
    Panel(
        "Samples of held-out prompts", ("eval/pass@*", "eval/maj@*"), ("eval/*/*",), "share right"
    ),
    Panel("KL", ("kl", "*/kl", "*_kl", "*kl_mean", "*gen_kl_error"), ("*coef*",), unit="nats"),
    Panel("Entropy", ("entropy", "*/entropy", "*entropy_mean"), ("*coef*",), unit="nats per token"),
    Panel("Response length", ("*response_length", "*response_length*mean"), unit="tokens"),
    Panel("Log-probability: training against rollout", ("*logprob*diff*",), unit="nats"),
    Panel("Time per phase", ("timing_s/*",), ("timing_s/step", "timing_s/*/*"), "s", stacked=True),
)
"""What a report of reinforcement learning shows; a panel without a metric is left out."""

SUPERVISED_PANELS = (
    Panel("Loss", ("loss", "eval/loss"), unit="nats"),
    Panel("Probability of the right token", ("probability", "eval/probability")),
    Panel("Accuracy", ("accuracy", "eval/accuracy"), unit="share right"),
    Panel("Reward", ("*reward_chosen", "*reward_rejected"), unit="score"),
    Panel("Gradient norm", ("grad_norm",)),
    Panel("Tokens per second", ("perf/tokens_per_s",)),
)
"""What a report of learning from examples shows."""


def plot_curves(
    metrics_path: str | Path,
    image_path: str | Path,
    *,
    panels: Sequence[Panel] = PANELS,
    title: str = "",
) -> Path:
    """Draws metrics.jsonl into a PNG and returns its path.

    DataError for a file without any of the panels' metrics; ConfigError without matplotlib.
    """
    steps = read_metrics(metrics_path)
    chosen = [(panel, series) for panel in panels if (series := _series(steps, panel))]
    if not chosen:
        names = sorted({name for metrics in steps.values() for name in metrics})
        raise DataError(f"metrics {metrics_path} hold nothing to draw; they have: {names}")
    return draw_panels(chosen, image_path, title=title)


def draw_run(folder: Path, panels: Sequence[Panel] = PANELS) -> str:
    """Draws a run folder's metrics into curves.png; what its report has to say where it cannot."""
    if importlib.util.find_spec("matplotlib") is None:
        return "There is no curves.png: matplotlib is not installed.\n"
    plot_curves(folder / METRICS_FILE, folder / "curves.png", panels=panels, title=str(folder))
    return ""


Series = dict[str, tuple[list[int], list[float]]]
"""Name -> (steps, values)."""


def draw_panels(
    chosen: Sequence[tuple[Panel, Series]], image_path: str | Path, *, title: str = ""
) -> Path:
    """Draws each panel's series, at most three in a row, into a PNG and returns its path.

    ConfigError without matplotlib.
    """
    try:
        # The object interface and Agg alone: pyplot would look for a screen and keep global state.
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.layout_engine import ConstrainedLayoutEngine
    except ImportError as error:
        raise ConfigError("curves need matplotlib: pip install matplotlib") from error
    num_columns = min(len(chosen), 3)
    num_rows = -(-len(chosen) // num_columns)
    figure = Figure(figsize=(5.0 * num_columns, 3.2 * num_rows), dpi=120)
    FigureCanvasAgg(figure)
    figure.set_layout_engine(ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12))
    if title:
        figure.suptitle(title, fontweight="bold")
    grid = figure.add_gridspec(num_rows, num_columns)
    for index, (panel, series) in enumerate(chosen):
        row, column = divmod(index, num_columns)
        # The last panel takes what is left of its row.
        end = num_columns if index == len(chosen) - 1 else column + 1
        _draw(figure.add_subplot(grid[row, column:end]), panel, series)
    image_path = Path(image_path)
    image_path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(image_path)
    return image_path


def _series(steps: Mapping[int, Metrics], panel: Panel) -> Series:
    """Name -> (steps, values) of what the panel shows, in order of first appearance."""
    series: Series = {}
    for step, metrics in steps.items():
        for name, value in metrics.items():
            if _matches(name, panel.include) and not _matches(name, panel.exclude):
                xs, ys = series.setdefault(name, ([], []))
                xs.append(step)
                ys.append(value)
    # What weighs most is shown first: a panel never hides its largest phase.
    weight = {name: sum(map(abs, ys)) / len(ys) for name, (_, ys) in series.items()}
    kept = set(sorted(weight, key=lambda name: -weight[name])[:_MAX_SERIES])
    return {name: points for name, points in series.items() if name in kept}


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _draw(axes: Axes, panel: Panel, series: Series) -> None:
    axes.set_title(panel.title, fontsize=11, fontweight="bold", loc="left")
    axes.set_xlabel("step", fontsize=9)
    axes.set_ylabel(panel.unit, fontsize=9)
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.02)
    if panel.stacked:
        _draw_stacked(axes, series)
    else:
        _draw_lines(axes, series)
    axes.locator_params(axis="x", integer=True)


def _draw_lines(axes: Axes, series: Series) -> None:
    for color, (name, (xs, ys)) in zip(_COLORS, series.items(), strict=False):
        if len(xs) > _SMOOTH_FROM:
            axes.plot(xs, ys, color=color, linewidth=0.8, alpha=0.3)
            ys = _moving_mean(ys, len(ys) // 20)
        # A line through few points hides where they are.
        marker = "o" if len(xs) <= 30 else None
        axes.plot(xs, ys, color=color, linewidth=1.6, marker=marker, markersize=3, label=name)
    if len(series) > 1:
        axes.legend(fontsize=8, frameon=False, loc="best")


def _moving_mean(values: Sequence[float], reach: int) -> list[float]:
    """Each value's mean with `reach` neighbours on both sides; fewer, but as many, at the ends."""
    last = len(values) - 1
    reaches = [min(reach, i, last - i) for i in range(len(values))]
    windows = (values[i - r : i + r + 1] for i, r in enumerate(reaches))
    return [sum(window) / len(window) for window in windows]


def _draw_stacked(axes: Axes, series: Series) -> None:
    all_steps = sorted({step for xs, _ in series.values() for step in xs})
    values = [dict(zip(*points, strict=True)) for points in series.values()]
    heights = [[phase.get(step, 0.0) for step in all_steps] for phase in values]
    labels = [name.removeprefix("timing_s/") for name in series]
    axes.stackplot(all_steps, heights, labels=labels, colors=_COLORS, alpha=0.85)
    axes.set_ylim(bottom=0)
    # Beside the areas, and in their order from top to bottom.
    handles, names = axes.get_legend_handles_labels()
    axes.legend(
        handles[::-1],
        names[::-1],
        fontsize=8,
        frameon=False,
        loc="upper left",
        bbox_to_anchor=(1.0, 1.0),
    )

"""Tables at the end of a run: numbers of it, and answers before and after."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

# Without a terminal there is no width to fit: wide enough that no row of figures wraps.
_PLAIN_WIDTH = 120


@dataclass(frozen=True, slots=True)
class SampleAnswer:
    """One prompt, answered before and after training."""

    prompt: str
    label: str
    before: str
    after: str
    before_reward: float
    after_reward: float


def summary_table(
    rows: Mapping[str, float | str | Sequence[float | str]], columns: Sequence[str], title: str = ""
) -> Table:
    """A table with a row per item: its name, then its cells (one alone, or a sequence).

    columns: heading of the names, then one per cell. ValueError if a row has another length.
    """
    table = Table(title=title or None, box=box.ROUNDED, title_style="bold")
    table.add_column(columns[0])
    for column in columns[1:]:
        table.add_column(column, justify="right")
    for name, value in rows.items():
        cells = [value] if isinstance(value, str | float | int) else list(value)
        if len(cells) != len(columns) - 1:
            raise ValueError(f"row {name!r} has {len(cells)} cells for {len(columns) - 1} columns")
        table.add_row(Text(name), *(Text(_cell(cell)) for cell in cells))
    return table


def sources_table(
    metrics: Mapping[str, float], prompts: Mapping[str, int], title: str = ""
) -> Table:
    """An evaluation's metrics: a row per source, where there are several, and one for all.

    metrics: eval/NAME over all prompts, eval/NAME/SOURCE over those of a source. prompts: how many
    each source has.
    """
    names = [name for name in metrics if name.count("/") == 1]
    if "eval/pass@1" in names:  # the same number
        names.remove("eval/sampled_accuracy")
    heads = [name.removeprefix("eval/").replace("reward_mean", "reward") for name in names]
    sources = sorted(prompts) if len(prompts) > 1 else []
    rows: dict[str, list[float | str]] = {
        source: [*(metrics[f"{name}/{source}"] for name in names), prompts[source]]
        for source in sources
    }
    # A source may itself be called "all".
    rows["all" if "all" not in rows else "(all)"] = [
        *(metrics[name] for name in names), sum(prompts.values())
    ]  # fmt: skip
    return summary_table(rows, ["source", *heads, "prompts"], title)


def answers_table(
    samples: Sequence[SampleAnswer], title: str = "Answers", max_chars: int = 160
) -> Table:
    """A table with what the model answered before and after, side by side, with the rewards."""
    table = Table(title=title, box=box.ROUNDED, show_lines=True, title_style="bold")
    table.add_column("Prompt", ratio=3)
    table.add_column("Right answer", ratio=1)
    table.add_column("Before", ratio=2)
    table.add_column("After", ratio=2)
    for sample in samples:
        table.add_row(
            Text(_shorten(sample.prompt, max_chars)),
            Text(_shorten(sample.label, max_chars)),
            _answer(_shorten(sample.before, max_chars), sample.before_reward),
            _answer(_shorten(sample.after, max_chars), sample.after_reward),
        )
    return table


def show(table: Table, console: Console | None = None) -> None:
    """Puts the table on the console: stdout if None, 120 columns wide where that is no terminal."""
    if console is None:
        console = Console()
        if not console.is_terminal:
            console = Console(width=_PLAIN_WIDTH)
    console.print(table)


def to_text(table: Table) -> str:
    """The table as plain text of 120 columns, for a file."""
    console = Console(width=_PLAIN_WIDTH, color_system=None, force_terminal=False)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


def _cell(value: float | str) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def _answer(text: str, reward: float) -> Text:
    style = "green" if reward >= 1 else "red" if reward <= 0 else "yellow"
    return Text.assemble((text or "(empty)", style), (f"\nreward {reward:.2g}", "dim"))


def _shorten(text: str, max_chars: int) -> str:
    text = text.strip()
    return text if len(text) <= max_chars else text[: max_chars - 1] + "…"

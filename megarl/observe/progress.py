"""How far a stage is: a live bar in a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress


class Progress:
    """Shows done / total of a stage, and the latest of a few figures beside it.

    `with Progress("train", 100) as bar: bar.advance(reward=0.8, kl=0.01, tokens_per_s=5100)`. One
    process shows it: the others pass enabled=False, which makes every call free.
    """

    def __init__(
        self,
        stage: str,
        total: int,
        enabled: bool = True,
        *,
        console: Console | None = None,
        every_s: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """total: steps. Outside a terminal one line appears each every_s seconds (0: each step)."""
        self._stage = stage
        self._total = total
        self._enabled = enabled
        self._console = console or Console(stderr=True)
        self._every_s = every_s
        self._clock = clock
        self._done = 0
        self._figures: dict[str, float] = {}
        self._start = self._last_line = clock()
        self._bar = self._open_bar() if enabled and self._console.is_terminal else None

    def begin_at(self, done: int) -> None:
        """Steps that an earlier start of the run made."""
        self._done = done

    def note(self, text: str) -> None:
        """One line beside the bar."""
        if self._enabled:
            self._console.print(text, markup=False, highlight=False)

    def advance(self, steps: int = 1, **figures: float) -> None:
        """Counts steps as done and shows the figures; earlier ones stay until given again."""
        if not self._enabled:
            return
        self._done += steps
        self._figures |= figures
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=self._done, figures=self._text())
            return
        now = self._clock()
        if now - self._last_line >= self._every_s or self._done == self._total:
            self._line(now)

    def close(self) -> None:
        """Ends the bar; the last state stays on the screen."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
        self._enabled = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _open_bar(self) -> RichProgress:
        bar = RichProgress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[figures]}", style="cyan"),
            console=self._console,
        )
        bar.add_task(self._stage, total=self._total, figures="")
        bar.start()
        return bar

    def _text(self) -> str:
        return "  ".join(f"{k.replace('_per_', '/')} {_short(v)}" for k, v in self._figures.items())

    def _line(self, now: float) -> None:
        self._last_line = now
        left_s = (now - self._start) / max(self._done, 1) * (self._total - self._done)
        rest = "done" if self._done >= self._total else f"{_duration(left_s)} left"
        line = f"{self._stage} {self._done}/{self._total} ({rest})  {self._text()}".rstrip()
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)


def _short(value: float) -> str:
    """At most four digits that matter, and no exponent for everyday numbers."""
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"

"""Wall time per phase of a step."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Phases:
    """`with phases("generate"): ...` adds to that phase's seconds; `pop` hands out a step's.

    A phase inside another is named "outer/inner" and counts in both. It measures the host's clock:
    work that is queued on an accelerator belongs to the phase that waits for it.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._seconds: dict[str, float] = {}
        self._open: list[str] = []
        self._step_start = clock()

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Times the block, also one that raises."""
        self._open.append(name)
        path = "/".join(self._open)
        start = self._clock()
        try:
            yield
        finally:
            self._open.pop()
            self._seconds[path] = self._seconds.get(path, 0.0) + self._clock() - start

    @property
    def current(self) -> str:
        """Where the step is now, "" between phases: for messages about a failure or a hang."""
        return "/".join(self._open)

    def pop(self) -> dict[str, float]:
        """{"timing_s/generate": seconds, ..., "timing_s/step": seconds}, and starts a new step.

        The step is all time since the last `pop`, or since the beginning.
        """
        now = self._clock()
        seconds = {**self._seconds, "step": now - self._step_start}
        self._seconds, self._step_start = {}, now
        return {f"timing_s/{name}": value for name, value in seconds.items()}

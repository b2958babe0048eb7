"""Functions that score rollouts in a thread, while others are still being generated."""

from __future__ import annotations

import queue
import threading
from collections.abc import Sequence
from contextlib import suppress
from types import TracebackType
from typing import NamedTuple

from megarl.errors import RunError
from megarl.rewards.base import RewardFunction, StepRewards, score
from megarl.types import Rollout


class WeightedReward(NamedTuple):
    """A reward function, and what its score is multiplied by."""

    name: str
    function: RewardFunction
    coef: float


Said = tuple[float | StepRewards, ...]
"""What each function said of one response, in the order of the functions."""


class Judging:
    """Scores of the rollouts that are added, by row.

    Lifecycle: `with` opens it, `add` takes rollouts as they come, `finish` waits for the rest and
    hands out all. One thread calls the functions, one after the other, with all that has come since
    its last call. Where an exception leaves the block what is not scored yet is dropped.

    overlap: False to call the functions in `finish` alone, in the thread of the caller.
    """

    def __init__(self, functions: Sequence[WeightedReward], *, overlap: bool = True) -> None:
        self._functions = tuple(functions)
        self._overlap = overlap and bool(functions)
        self._inbox: queue.SimpleQueue[Sequence[Rollout] | None] = queue.SimpleQueue()
        self._said: dict[int, Said] = {}
        self._error: Exception | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Judging:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # Nobody waits for a call that is under way: it may be what everything hangs on.
        if self._thread is not None:
            with suppress(queue.Empty):
                while True:
                    self._inbox.get_nowait()
            self._inbox.put(None)

    def add(self, rollouts: Sequence[Rollout]) -> None:
        """Score these too."""
        self._inbox.put(rollouts)
        if self._overlap and self._thread is None:
            self._thread = threading.Thread(target=self._work, name="megarl-reward", daemon=True)
            self._thread.start()

    def finish(self) -> dict[int, Said]:
        """What was said of each row; RunError, as `score` raises it, where a function failed."""
        self._inbox.put(None)
        if self._thread is None:
            self._work()
        else:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            raise self._error
        return self._said

    def _work(self) -> None:
        """Score until None comes; what came meanwhile goes into one call."""
        more = True
        while more and self._error is None:
            waiting = [self._inbox.get()]
            with suppress(queue.Empty):
                while True:
                    waiting.append(self._inbox.get_nowait())
            more = None not in waiting
            self._score([one for some in waiting if some is not None for one in some])

    def _score(self, rollouts: Sequence[Rollout]) -> None:
        try:
            columns = [score(each.function, each.name, rollouts) for each in self._functions]
        except Exception as error:  # raised again by `finish`, in the caller's thread
            self._error = error
            if "main thread" in str(error):  # as Python's signal module says
                cure = "reward.overlap=false calls it there"
                self._error = RunError(f"{error}; {cure}").with_traceback(error.__traceback__)
            return
        for rollout, *said in zip(rollouts, *columns, strict=True):
            self._said[rollout.request.row] = tuple(said)

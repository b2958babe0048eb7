"""The control exchange: small typed facts that all ranks agree on, once per phase.

Whatever depends on data (stop, skip, refill, statistics) is decided from what comes out of here,
so that no rank decides for itself. It carries the number and name of the verb its caller is at: a
rank that is elsewhere is named at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from megarl.errors import RunError
from megarl.mesh.universe import Universe


class Control:
    """Numbers verbs, and exchanges facts under their numbers."""

    def __init__(
        self,
        universe: Universe,
        announce: Callable[[int, str, int | None], None],
        waiting: Callable[[bool], None] = lambda _: None,
        asked_to_leave: Callable[[], bool] = lambda: False,
    ) -> None:
        """announce: hears the verbs; waiting: hears when an exchange begins and ends.

        asked_to_leave: whether somebody wants this rank to save and end.
        """
        self._universe = universe
        self._announce, self._waiting = announce, waiting
        self.asked_to_leave = asked_to_leave
        self.sequence = 0
        self.verb = "start"
        self.step: int | None = None
        """The training step, for messages."""

    def enter(self, verb: str) -> None:
        """Say that this rank begins the next verb."""
        self.sequence += 1
        self.verb = verb
        self._announce(self.sequence, verb, self.step)

    @property
    def rank(self) -> int:
        """This process's universe rank."""
        return self._universe.rank

    def is_rank(self, rank: int) -> bool:
        """Whether this process is universe rank `rank`."""
        return self._universe.rank == rank

    def gather(self, facts: Any) -> list[Any]:
        """Every rank's facts, in rank order; raises RunError where a rank is at another verb."""
        with self._exchange():
            answers = self._universe.all_gather((self.sequence, self.verb, facts))
        mine = (self.sequence, self.verb)
        for rank, (sequence, verb, _) in enumerate(answers):
            if (sequence, verb) != mine:
                raise RunError(
                    f"rank {rank} is at verb {sequence} ({verb}) while rank "
                    f"{self._universe.rank} is at verb {mine[0]} ({mine[1]})"
                )
        return [facts for _, _, facts in answers]

    def collect(self, value: Any) -> list[Any]:
        """Every rank's value, in rank order, on universe rank 0, which keeps the books; else [].

        For texts and what else is too much for all ranks. RunError as in `gather`.
        """
        self.gather(None)
        with self._exchange():
            return self._universe.gather(value, 0)

    def agree(self, facts: Mapping[str, float]) -> dict[str, float]:
        """Sum of each named number over all ranks, added in rank order on every rank."""
        total: dict[str, float] = {}
        for answer in self.gather(dict(facts)):
            for name, value in answer.items():
                total[name] = total.get(name, 0.0) + value
        return total

    def sum(self, vector: Tensor) -> Tensor:
        """Elementwise fp64 sum of a vector of the same length on all ranks."""
        with self._exchange():
            return self._universe.all_reduce(vector.double().clone())

    @contextmanager
    def _exchange(self) -> Iterator[None]:
        self._waiting(True)
        yield
        self._waiting(False)

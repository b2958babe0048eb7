"""What every kind of training has in common: its steps, its books, and where it stands."""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from megarl.config.schema import Config
from megarl.errors import ConfigError
from megarl.mesh.control import Control
from megarl.mesh.universe import Universe
from megarl.observe.logger import Logger
from megarl.observe.progress import Progress
from megarl.observe.timing import Phases
from megarl.roles.megatron_role import MegatronRole


@dataclass
class Books:
    """What is written while a stage goes on; the logger and the bar exist on rank 0 only."""

    logger: Logger | None
    progress: Progress | None
    phases: Phases = field(default_factory=Phases)
    step_started: float = 0.0


def open_books(config: Config, universe: Universe, name: str) -> Books:
    """A run's logger and bar, on rank 0."""
    if universe.rank != 0:
        return Books(None, None)
    logger = Logger(use_tensorboard=config.observe.use_tensorboard, log_dir=config.run.dir)
    return Books(logger, Progress(name, config.run.steps, enabled=config.observe.progress))


@dataclass(frozen=True, slots=True)
class Best:
    """The step with the best evaluation so far."""

    metric: str
    higher: bool
    """Whether higher is better."""
    step: int
    value: float


@dataclass(kw_only=True)
class Stage(ABC):
    """One stage of training on this rank; fields hold the same on all ranks."""

    config: Config
    universe: Universe
    control: Control
    books: Books
    step: int = 0
    """Steps that are done."""
    best: Best | None = None
    """None before the first evaluation after a step, and without checkpoint.best_metric."""
    leaving: bool = False
    """Whether the run was asked to end before its last step, and has been saved."""

    @abstractmethod
    def trained_roles(self) -> Mapping[str, MegatronRole]:
        """The roles that a checkpoint keeps, by name."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Where the stage stands beside its roles, as JSON."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""

    @contextmanager
    def verb(self, name: str) -> Iterator[None]:
        """One numbered verb: announced to the peers, timed as `timing_s/<name>`."""
        self.control.enter(name)
        with self.books.phases(name):
            yield

    def steps(self) -> Iterator[int]:
        """The steps that are still to be made, until the run is asked to leave."""
        while self.step < self.config.run.steps and not self.leaving:
            self.control.step = self.step + 1
            self.books.phases.pop()  # what lies between two steps belongs to neither
            self.books.step_started = time.perf_counter()
            yield self.step

    def evaluation_is_due(self) -> bool:
        """Before the first step, after the last, and as often as the settings say."""
        interval, steps = self.config.run.eval_interval, self.config.run.steps
        return self.step in (0, steps) or (interval > 0 and self.step % interval == 0)

    def log_evaluation(self, metrics: Mapping[str, float]) -> None:
        """Write an evaluation's metrics and time, and note whether it is the best so far.

        Raises ConfigError for a checkpoint.best_metric that is not among them.
        """
        seconds = self.books.phases.pop()["timing_s/evaluate"]
        self.log({**metrics, "eval/seconds": seconds}, self.step)
        settings = self.config.checkpoint
        if (name := settings.best_metric) is None:
            return
        if name not in metrics:
            raise ConfigError(
                f"checkpoint.best_metric {name!r} is no metric of this run's evaluations: one of "
                f"{', '.join(sorted(metrics))}"
            )
        higher = settings.higher_is_better
        higher = not name.endswith("loss") if higher is None else higher
        value, before = metrics[name], self.best
        if before is not None and (before.metric, before.higher) != (name, higher):
            before = None  # of other settings: what is asked for now counts from here on
        better = before is None or (value > before.value if higher else value < before.value)
        if self.step > 0 and math.isfinite(value) and better:
            self.best = Best(name, higher, self.step, value)

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Write metrics, on the rank that keeps the books."""
        if self.books.logger is not None:
            self.books.logger.log(metrics, step)

    def close_books(self) -> None:
        """No more metrics come."""
        if self.books.logger is not None:
            self.books.logger.close()
        if self.books.progress is not None:
            self.books.progress.close()

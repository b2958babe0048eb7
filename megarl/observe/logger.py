"""Metrics of a run, to TensorBoard and to metrics.jsonl."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from megarl.errors import ConfigError
from megarl.observe.metrics_file import METRICS_FILE, MetricsWriter, drop_after

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

_log = logging.getLogger(__name__)


class Logger:
    """Writes metrics; `Logger(log_dir="./logs").log({"reward_mean": 0.85}, step=100)`.

    Also a context manager. In a distributed run one process alone has one.
    """

    def __init__(
        self, use_tensorboard: bool = True, log_dir: str | Path = "./logs", jsonl: bool = True
    ) -> None:
        """Makes log_dir; an earlier metrics.jsonl in it is continued.

        ConfigError if the folder cannot be written, or TensorBoard is wanted and not installed.
        """
        self._directory = directory = Path(log_dir)
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self._lines = MetricsWriter(directory / METRICS_FILE) if jsonl else None
        except OSError as error:
            raise ConfigError(f"log_dir {directory} cannot be written: {error}") from error
        self._tensorboard = _summary_writer(directory) if use_tensorboard else None

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Logs the metrics (anything that float() takes) of one step.

        A value that is not finite is null in the jsonl, left out of TensorBoard, and warned of.
        """
        if "step" in metrics:
            raise ConfigError("a metric cannot be called 'step': pass step=..., or rename it")
        numbers = {name: float(value) for name, value in metrics.items()}
        broken = {name: value for name, value in numbers.items() if not math.isfinite(value)}
        if broken:
            listed = ", ".join(f"{name}={value}" for name, value in broken.items())
            _log.warning("step %d: metrics that are not finite: %s", step, listed)
        if self._lines is not None:
            self._lines.write(step, numbers)
        if self._tensorboard is not None:
            for name, value in numbers.items():
                if name not in broken:
                    self._tensorboard.add_scalar(name, value, step)

    def forget_after(self, step: int) -> None:
        """Drops what was logged of later steps: a resumed run logs them again."""
        if self._lines is not None:
            drop_after(self._directory / METRICS_FILE, step)
        if self._tensorboard is not None:
            self._tensorboard.close()
            self._tensorboard = _summary_writer(self._directory, purge_step=step + 1)

    def close(self) -> None:
        """Flushes and closes the files; a second call does nothing."""
        if self._lines is not None:
            self._lines.close()
        if self._tensorboard is not None:
            self._tensorboard.close()
        self._lines = self._tensorboard = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _summary_writer(directory: Path, purge_step: int | None = None) -> SummaryWriter:
    try:
        # Here, since it takes seconds to import.
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ConfigError(
            f"use_tensorboard needs TensorBoard: pip install tensorboard, or set it to false "
            f"({error})"
        ) from error
    return SummaryWriter(str(directory), flush_secs=10, purge_step=purge_step)

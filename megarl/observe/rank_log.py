"""One log file per rank, and rank 0 on the console."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from types import TracebackType
from typing import Self, TextIO

from megarl.errors import ConfigError

_ROOT = "megarl"


class RankLog:
    """While open, what is logged under "megarl" goes to run_dir/logs/rank_{r}.log.

    Rank 0's also goes to the console. The files are appended to, so a resumed run keeps its past.
    Also a context manager.
    """

    def __init__(
        self,
        run_dir: str | Path,
        rank: int,
        *,
        level: str = "INFO",
        console: TextIO | None = None,
    ) -> None:
        """level: of the console; the file takes DEBUG and up. console: stderr if None.

        ConfigError for an unknown level or a folder that cannot be written.
        """
        if level not in logging.getLevelNamesMapping():
            known = "DEBUG, INFO, WARNING, ERROR, CRITICAL"
            raise ConfigError(f"log level {level!r} is unknown: one of {known}")
        self.path = Path(run_dir) / "logs" / f"rank_{rank}.log"
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            file = logging.FileHandler(self.path, encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"log file {self.path} cannot be written: {error}") from error
        where = f"%(asctime)s rank={rank} %(levelname)s %(name)s: %(message)s"
        file.setFormatter(logging.Formatter(where))
        self._handlers: list[logging.Handler] = [file]
        if rank == 0:
            to_console = logging.StreamHandler(console or sys.stderr)
            to_console.setLevel(level)
            to_console.setFormatter(logging.Formatter(where, datefmt="%H:%M:%S"))
            self._handlers.append(to_console)
        root = logging.getLogger(_ROOT)
        self._before = root.level, root.propagate
        root.setLevel(logging.DEBUG)
        # vLLM and absl put handlers on the root logger, which would print every line again.
        root.propagate = False
        for handler in self._handlers:
            root.addHandler(handler)

    def close(self) -> None:
        """Leaves the logger as it was; a second call does nothing."""
        root = logging.getLogger(_ROOT)
        for handler in self._handlers:
            root.removeHandler(handler)
            handler.close()
        if self._handlers:
            level, root.propagate = self._before
            root.setLevel(level)
        self._handlers = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

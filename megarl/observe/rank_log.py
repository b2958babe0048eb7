"""One log file per rank: verbs, steps, warnings, and the cause of a failure."""

from __future__ import annotations

import logging
from pathlib import Path

from megarl.errors import ConfigError

_ROOT = "megarl"


class RankLog:
    """While open, what is logged under "megarl" goes to run_dir/logs/rank_{r}.log.

    The file is appended to, so a run that is started again keeps its past.
    """

    def __init__(self, run_dir: str | Path, rank: int) -> None:
        """ConfigError for a folder that cannot be written."""
        self.path = Path(run_dir) / "logs" / f"rank_{rank}.log"
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = logging.FileHandler(self.path, encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"log file {self.path} cannot be written: {error}") from error
        where = f"%(asctime)s rank={rank} %(levelname)s %(name)s: %(message)s"
        self._file.setFormatter(logging.Formatter(where))
        root = logging.getLogger(_ROOT)
        self._before = root.level, root.propagate
        root.setLevel(logging.DEBUG)
        # vLLM and absl put handlers on the root logger, which would print every line.
        root.propagate = False
        root.addHandler(self._file)

    def close(self) -> None:
        """Leaves the logger as it was."""
        root = logging.getLogger(_ROOT)
        root.removeHandler(self._file)
        self._file.close()
        level, root.propagate = self._before
        root.setLevel(level)

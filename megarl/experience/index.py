"""The table of a buffer's samples, in shared memory: one row each, and a head with the counts.

A row counts once its state says so, which is written last: a process that is killed in between
leaves a free row.
"""

from __future__ import annotations

import fcntl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from megarl.errors import ConfigError

FREE, READY = 0, 1
ROW = np.dtype(
    [
        ("state", "i8"),
        ("serial", "i8"),
        ("group", "i8"),
        ("priority", "f8"),
        ("version", "i8"),
        ("bytes", "i8"),
        ("epoch", "i8"),  # the last one in which it was drawn
        ("uses", "i8"),
        ("spilled", "i8"),
    ]
)
HEAD = np.dtype(
    [
        ("magic", "i8"),
        ("capacity", "i8"),
        ("serial", "i8"),
        ("epoch", "i8"),
        ("draws", "i8"),
        ("pushed", "i8"),
        ("dropped_full", "i8"),
        ("dropped_stale", "i8"),
    ]
)
MAGIC = 0x4D52_4C45_5850_0001
NAME = "index"


class Index:
    """Rows and head; read and changed under `locked` alone."""

    def __init__(self, folder: Path, capacity: int | None) -> None:
        """capacity: of a new one; None: the one that is there. ConfigError where there is none."""
        path = folder / NAME
        if capacity is not None:
            size = HEAD.itemsize + capacity * ROW.itemsize
            path.write_bytes(b"\0" * size)
        elif not path.is_file():
            raise ConfigError(f"there is no experience buffer in {folder}")
        self._lock_file = path.open("r+b")
        self._thread_lock = threading.Lock()
        memory: Any = np.memmap(path, dtype=np.uint8, mode="r+")
        self.head = memory[: HEAD.itemsize].view(HEAD)[0:1]
        self.rows = memory[HEAD.itemsize :].view(ROW)
        if capacity is not None:
            self.head["capacity"], self.head["epoch"], self.head["magic"] = capacity, 1, MAGIC
        elif self.head["magic"][0] != MAGIC:
            raise ConfigError(f"{path} is no index of an experience buffer of this version")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Nobody else, in any process, is here meanwhile."""
        with self._thread_lock:
            fcntl.flock(self._lock_file, fcntl.LOCK_EX)
            try:
                yield
            finally:
                fcntl.flock(self._lock_file, fcntl.LOCK_UN)

    def count(self, name: str, more: int = 1) -> int:
        """Add to a number of the head; returns what it was."""
        before = int(self.head[name][0])
        self.head[name] = before + more
        return before

    def ready(self) -> np.ndarray[Any, Any]:
        """Rows with a sample."""
        return np.flatnonzero(self.rows["state"] == READY)

    def close(self) -> None:
        """Nothing may be called after."""
        self._lock_file.close()

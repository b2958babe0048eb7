"""Folders that are being written: they go when the process must end before they are whole.

An exception in the writer cleans up by itself; this is for a process that is ended from the side,
because a peer failed while the writer waited for it.
"""

from __future__ import annotations

import shutil
from pathlib import Path

_locks: dict[Path, Path] = {}
"""Folders that are not whole, each with the file that keeps other processes out of it."""


def begin(folder: Path, lock: Path) -> None:
    """The folder is being written, under `lock`."""
    _locks[folder] = lock


def end(folder: Path) -> None:
    """The folder is whole, or gone."""
    _locks.pop(folder, None)


def remove_all() -> None:
    """Remove what is not whole, and the files that guarded it."""
    for folder, lock in sorted(_locks.items()):
        shutil.rmtree(folder, ignore_errors=True)
        lock.unlink(missing_ok=True)

"""Folders that are being written: they go when the process must end before they are whole.

An exception in the writer cleans up by itself; this is for a process that is ended from the side,
because a peer failed while the writer waited for it.
"""

from __future__ import annotations

import shutil
from pathlib import Path

_folders: set[Path] = set()


def begin(folder: Path) -> None:
    """The folder is being written."""
    _folders.add(folder)


def end(folder: Path) -> None:
    """The folder is whole, or gone."""
    _folders.discard(folder)


def remove_all() -> None:
    """Remove what is not whole."""
    for folder in sorted(_folders):
        shutil.rmtree(folder, ignore_errors=True)

"""An output folder that appears under its name when it is whole, and not before."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from megarl.errors import ConfigError
from megarl.runtime.aside import FULL, check_writable, disk_full, sync, sync_tree, work_folder


@contextmanager
def written_aside(folder: Path, needed_bytes: int) -> Iterator[Path]:
    """A new folder `<folder>.partial`, which becomes `folder` when the block ends without error.

    Raises ConfigError, before anything is written, where `folder` exists, its disk has not
    `needed_bytes` left, or another process is writing it. What a killed process left is removed.
    An error inside removes what was written; a full disk becomes a RunError.
    """
    if folder.exists() or folder.is_symlink():
        raise ConfigError(f"{folder} exists already: remove it, or give another output folder")
    above = check_writable(folder, str(folder), "give another output folder")
    with work_folder(folder.with_name(folder.name + ".partial")) as partial:
        free = shutil.disk_usage(above).free
        if free < needed_bytes:
            raise ConfigError(
                f"{folder}: {needed_bytes / 1e9:.3f} GB are to be written and the disk has "
                f"{free / 1e9:.3f} GB left: make room, or give a folder on another disk"
            )
        yield partial
        sync_tree(partial)
        os.rename(partial, folder)
        sync(folder.absolute().parent)


@contextmanager
def naming(file: Path, tensor: str) -> Iterator[None]:
    """A disk that fills up while `tensor` is written to `file` becomes a RunError that says so."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise disk_full(f"{file}, at {tensor}", error) from None


class PlainFile:
    """A file that is written from front to back, with nothing held back."""

    def __init__(self, path: Path) -> None:
        self._handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        self.size = 0
        """Bytes so far."""
        self.error: OSError | None = None
        """Why a write failed, for callers whose libraries say less."""

    def write(self, content: bytes | memoryview) -> int:
        """Append all of it."""
        view, done = memoryview(content).cast("B"), 0
        try:
            while done < len(view):
                done += os.write(self._handle, view[done:])
        except OSError as error:
            self.error = error
            raise
        self.size += done
        return done

    def flush(self) -> None:
        """Nothing is held back; torch.save asks for it."""

    def close(self) -> None:
        """End the file."""
        os.close(self._handle)

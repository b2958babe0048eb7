"""Files that appear under their names when they are whole: written aside first, renamed last."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

from megarl.errors import ConfigError, RunError
from megarl.runtime import unfinished

FULL = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
"""What the kernel says where a disk, a quota or a limit is full."""


@contextmanager
def work_folder(folder: Path, *, wait: bool = False) -> Iterator[Path]:
    """`folder`, new, empty, and this process's alone; at the end it goes, with what is left in it.

    What a killed process left in it is removed. Raises ConfigError where another process has it,
    unless `wait`, which waits until it has not. A disk that fills up becomes a RunError.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _locked(folder, wait):
        if folder.exists():
            shutil.rmtree(folder)
        unfinished.begin(folder)
        try:
            folder.mkdir()
            yield folder
        except OSError as error:
            if error.errno in FULL:
                raise disk_full(error.filename or folder, error) from None
            raise
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            unfinished.end(folder)


def check_writable(path: Path, key: str, cure: str) -> Path:
    """The nearest folder above `path` that exists; ConfigError where nothing can be made in it."""
    above = next(parent for parent in path.absolute().parents if parent.exists())
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        raise ConfigError(f"{key}: {above} cannot be written: {cure}")
    return above


def disk_full(where: object, error: OSError) -> RunError:
    """The error for a disk that filled up while `where` was written."""
    return RunError(
        f"{where}: {error.strerror}: what was written is removed; make room (df, quota, ulimit -f) "
        "and run the same again"
    )


def sync_tree(folder: Path) -> None:
    """Flush a folder and all in it to the disk."""
    # All at once: a file system commits those that wait together with one write to its journal.
    paths = [folder, *folder.rglob("*")]
    with ThreadPoolExecutor(min(len(paths), 32)) as pool:
        list(pool.map(sync, paths))


def sync(path: Path) -> None:
    """Flush one file, or the names in a folder, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def _locked(folder: Path, wait: bool) -> Iterator[None]:
    """Hold `<folder>.lock`, which the kernel lets go of when the process ends."""
    lock = folder.with_name(folder.name + ".lock")
    handle = _open_locked(lock, wait)
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)
        os.close(handle)


def _open_locked(lock: Path, wait: bool) -> int:
    while True:
        handle = os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            os.close(handle)
            raise ConfigError(
                f"{lock.with_suffix('')}: another process is writing it now: wait for it, or give "
                "another output"
            ) from None
        # Whoever had it before has unlinked it: a lock on a file without a name holds nobody off.
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(handle), lock.stat()):
                return handle
        os.close(handle)

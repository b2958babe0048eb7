"""Files that appear under their names when they are whole: written aside first, renamed last."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import socket
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

from megarl.errors import ConfigError, RunError
from megarl.runtime import unfinished

NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK)
"""What a file system says that knows no locks: there, nobody is held off."""
FULL = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
"""What the kernel says where a disk, a quota or a limit is full."""


@contextmanager
def work_folder(folder: Path, *, wait_s: float = 0.0) -> Iterator[Path]:
    """`folder`, new, empty, and this process's alone; at the end it goes, with what is left in it.

    What a killed process left in it is removed. Raises ConfigError where another process still has
    it after `wait_s` seconds. A disk that fills up becomes a RunError.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    refusal = f"{folder}: another process is writing it now"
    lock = folder.with_name(folder.name + ".lock")
    with _locked(lock, refusal, wait_s):
        if folder.exists():
            shutil.rmtree(folder)
        unfinished.begin(folder, lock)
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


def write_whole(path: Path, lines: Iterable[str]) -> None:
    """Write a file that has its name, in place of an older one, once all of it is on the disk.

    A disk that fills up becomes a RunError.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("w", encoding="utf-8") as file:
            file.writelines(lines)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        if error.errno in FULL:
            raise disk_full(path, error) from None
        raise


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


def take_place(partial: Path, folder: Path) -> None:
    """Give `partial`, which is whole, the name `folder`; an older one goes when it has it."""
    older = folder.with_name(folder.name + ".older")
    if older.exists():  # of a process that was killed at this
        shutil.rmtree(older)
    if folder.exists():
        os.rename(folder, older)
    os.rename(partial, folder)
    sync(folder.absolute().parent)
    shutil.rmtree(older, ignore_errors=True)


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
def sole_use(folder: Path, key: str, wait_s: float = 0.0) -> Iterator[None]:
    """Keep other processes out of `folder`, which is made where it is not there.

    ConfigError, naming `key` and who is there, where one is still there after `wait_s` seconds: a
    file server may hold the lock of a node that was lost for a minute or two. ConfigError too for a
    folder that cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = error.strerror or error
        message = f"{key} {folder} cannot be written: {reason}: give another folder"
        raise ConfigError(message) from None
    refusal = f"{key} {folder}: another run is in this folder"
    with _locked(folder / "run.lock", refusal, wait_s):
        yield


@contextmanager
def _locked(lock: Path, refusal: str, wait_s: float) -> Iterator[None]:
    """Hold the file `lock`, which the kernel lets go of when the process ends."""
    until = time.monotonic() + wait_s
    while (handle := _try_lock(lock)) is None:
        if time.monotonic() >= until:
            who = lock.read_text() if lock.exists() else ""
            raise ConfigError(f"{refusal} ({who}): wait for it, or give another")
        time.sleep(0.05)
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)
        os.close(handle)


def _try_lock(lock: Path) -> int | None:
    """A handle of the locked file, with this process's name in it; None where another has it."""
    handle = os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return None
    except OSError as error:
        if error.errno not in NO_LOCKS:
            os.close(handle)
            raise
    # Whoever had it before has unlinked it: a lock on a file without a name holds nobody off.
    with suppress(FileNotFoundError):
        if os.path.samestat(os.fstat(handle), lock.stat()):
            os.truncate(handle, 0)
            os.write(handle, f"process {os.getpid()} on {socket.gethostname()}".encode())
            return handle
    os.close(handle)
    return _try_lock(lock)

"""An output folder that appears under its name when it is whole, and not before."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from megarl.errors import ConfigError, RunError
from megarl.runtime import unfinished

NOT_COPIED = (".safetensors", ".index.json", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack")
"""Ends of names that are weights, or about files of weights."""


@contextmanager
def written_aside(folder: Path, needed_bytes: int) -> Iterator[Path]:
    """A new folder `<folder>.partial`, which becomes `folder` when the block ends without error.

    Raises ConfigError, before anything is written, where `folder` exists, its disk has not
    `needed_bytes` left, or another process is writing it. What a killed process left is removed.
    An error inside removes what was written; a full disk becomes a RunError.
    """
    if folder.exists() or folder.is_symlink():
        raise ConfigError(f"{folder} exists already: remove it, or give another output folder")
    above = next(parent for parent in folder.absolute().parents if parent.exists())
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        raise ConfigError(f"{folder}: {above} cannot be written: give another output folder")
    partial = folder.with_name(folder.name + ".partial")
    partial.parent.mkdir(parents=True, exist_ok=True)
    with _locked(partial):
        if partial.exists():
            shutil.rmtree(partial)
        free = shutil.disk_usage(above).free
        if free < needed_bytes:
            raise ConfigError(
                f"{folder}: {needed_bytes / 1e9:.3f} GB are to be written and the disk has "
                f"{free / 1e9:.3f} GB left: make room, or give a folder on another disk"
            )
        unfinished.begin(partial)
        partial.mkdir()
        try:
            yield partial
            _sync(partial)
            os.rename(partial, folder)
            _sync_one(folder.absolute().parent)
        except BaseException as error:
            shutil.rmtree(partial, ignore_errors=True)
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EFBIG):
                raise _full(error.filename or partial, error) from None
            raise
        finally:
            unfinished.end(partial)


@contextmanager
def naming(file: Path, tensor: str) -> Iterator[None]:
    """A disk that fills up while `tensor` is written to `file` becomes a RunError that says so."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT):
            raise
        raise _full(f"{file}, at {tensor}", error) from None


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


def copy_companions(source: Path, target: Path) -> None:
    """Copy what lies beside the weights: config, tokenizer, generation config, chat template."""
    target.mkdir(exist_ok=True)
    for file in sorted(source.iterdir()):
        if file.is_file() and not file.name.endswith(NOT_COPIED):
            shutil.copyfile(file, target / file.name)
    templates = source / "additional_chat_templates"
    if templates.is_dir():
        shutil.copytree(templates, target / templates.name)


def _full(where: object, error: OSError) -> RunError:
    return RunError(
        f"{where}: {error.strerror}: what was written is removed; make room (df, quota, ulimit -f) "
        "and convert again"
    )


@contextmanager
def _locked(partial: Path) -> Iterator[None]:
    """Hold `<folder>.partial.lock`, which the kernel lets go of when the process ends."""
    lock = partial.with_name(partial.name + ".lock")
    handle = os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"{partial}: another process is writing it now: wait for it, or give another "
                "output folder"
            ) from None
        try:
            yield
        finally:
            lock.unlink()
    finally:
        os.close(handle)


def _sync(folder: Path) -> None:
    # All at once: a file system commits those that wait together with one write to its journal.
    paths = [folder, *folder.rglob("*")]
    with ThreadPoolExecutor(min(len(paths), 32)) as pool:
        list(pool.map(_sync_one, paths))


def _sync_one(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

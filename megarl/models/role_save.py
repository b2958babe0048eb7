"""A role's checkpoint on its way to disk: planned by all ranks, written by threads, then finished.

Megatron-Core plans what each rank writes and closes the folder. Between the two it would fork one
process per file, which outlives a rank that is killed and is waited for without end where it dies
itself: here threads write the same files.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.serialization import get_default_save_sharded_strategy
from megatron.core.dist_checkpointing.strategies import filesystem_async
from megatron.core.dist_checkpointing.strategies.filesystem_async import FileSystemWriterAsync
from megatron.core.dist_checkpointing.strategies.fully_parallel import (
    FullyParallelSaveStrategyWrapper,
)
from torch.distributed.checkpoint.api import CheckpointException

from megarl.errors import PeerError, RunError
from megarl.models.engine import MegatronEngine
from megarl.runtime.device import on_cuda


class CheckpointError(RunError):
    """A part of a role could not be written; the cause is known here."""


class RoleSave:
    """One role's save; all ranks of its pool make and finish it together."""

    def __init__(
        self,
        engine: MegatronEngine,
        state: dict[str, Any],
        folder: Path,
        metadata: dict[str, Any],
        *,
        copies: bool,
    ) -> None:
        """Plan, and begin to write into the empty folder.

        state: as `dist_checkpointing.save` takes it. copies: take a copy of all that this rank
        writes, so that training may go on before it is written; else nothing may change until then.
        """
        self._mesh = engine.mesh
        # Megatron's queue would be a process of its own.
        filesystem_async._results_queue = queue.SimpleQueue()
        with self._mesh.activate(), _known_errors():
            # Ranks that hold the same share the writing of it.
            strategy = FullyParallelSaveStrategyWrapper(
                get_default_save_sharded_strategy(), self._mesh.groups.dp_cp
            )
            self._request = dist_checkpointing.save(
                state, str(folder), strategy, content_metadata=metadata, async_sharded_save=True
            )
        self._thread = threading.Thread(target=self._write, name="megarl-save", daemon=True)
        self._results: Any = None
        if self._request.async_fn is not None:  # this rank has something to write
            self._results = self._request.async_fn_args[2]
            self._buckets = _staged(self._request.preload_fn(), copies)
        self._thread.start()

    @property
    def is_written(self) -> bool:
        """Whether this rank's own files are."""
        return not self._thread.is_alive()

    def finish(self) -> None:
        """Wait for this rank's files, then close the folder together.

        Raises on every rank where a file of any could not be written: CheckpointError with the
        cause, or PeerError where a peer knows it.
        """
        self._thread.join()
        with self._mesh.activate(), _known_errors():
            for finalize in self._request.finalize_fns:
                finalize()

    def _write(self) -> None:
        if self._results is not None:
            transforms = self._request.async_fn.args[0]
            self._results.put(_write_files(transforms, self._buckets))


@contextmanager
def _known_errors() -> Iterator[None]:
    try:
        yield
    except CheckpointException as error:  # of torch, and no Exception by its own wish
        causes = [str(failure[0]) for failure in error.failures.values()]
        if not causes:
            raise PeerError("a peer could not write its part") from error
        raise CheckpointError("; ".join(causes)) from error


def _staged(buckets: Sequence[Any], copies: bool) -> list[Any]:
    """Megatron's buckets with every tensor a copy of its own, where that is asked for.

    What came from a GPU is one already; on a CPU Megatron would hand out the live weights.
    """
    if not copies or on_cuda():
        return list(buckets)
    return [
        (path, key, (blobs, [(item, tensor.clone()) for item, tensor in tensors]))
        for path, key, (blobs, tensors) in buckets
    ]


def _write_files(transforms: Any, buckets: Sequence[Any]) -> dict[int, Any] | Exception:
    """What each file holds, by its number; or why one could not be written."""
    results: queue.SimpleQueue[tuple[int, Any]] = queue.SimpleQueue()
    threads = []
    for index, bucket in enumerate(buckets):
        counter: queue.Queue[int] = queue.Queue()
        counter.put(index)
        arguments = (transforms, index, bucket, results, counter, True)
        threads.append(
            threading.Thread(target=FileSystemWriterAsync.write_preloaded_data, args=arguments)
        )
        threads[-1].start()
    for thread in threads:
        thread.join()
    found = dict(results.get() for _ in threads)
    for written in found.values():
        if isinstance(written, Exception):
            return _cause(written)
    return found


def _cause(error: Exception) -> Exception:
    """What the system said: torch puts an error about its own bookkeeping in front of it."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError):
            return seen
        seen = seen.__cause__ or seen.__context__
    return error

"""A job per process, with a bar over all of them; no job outlives the process that started it."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any

from megarl.errors import MegaRLError, RunError
from megarl.observe.progress import Progress

MB = 1_000_000
MIN_JOB_BYTES = 64 << 20
"""A process is not worth its start for less."""
Tell = Callable[[int], None]
"""Takes the bytes that were done since the last call."""


def num_jobs(workers: int, total: int) -> int:
    """Over how many of at most `workers` processes to deal `total` bytes."""
    return max(min(workers, total // MIN_JOB_BYTES), 1)


def run_jobs(stage: str, job: Callable[[Any, Tell], Any], todo: Sequence[Any], total: int) -> Any:
    """`job(one, tell)` for each, in a process each where there are several; what they return.

    total: bytes that all of them will tell of. The first error ends all.
    """
    started = time.perf_counter()
    done = shown = 0
    with Progress(stage, max(-(-total // MB), 1)) as bar:

        def tell(count: int) -> None:
            nonlocal done, shown
            done += count
            steps = (-(-total // MB) if done >= total else done // MB) - shown
            shown += steps
            rate = done / 1e9 / max(time.perf_counter() - started, 1e-9)
            if steps:
                bar.advance(steps, MB=shown, GB_per_s=rate)

        if len(todo) == 1:
            return [job(todo[0], tell)]
        return _in_processes(job, todo, tell)


def _in_processes(job: Callable[[Any, Tell], Any], todo: Sequence[Any], tell: Tell) -> list[Any]:
    context = multiprocessing.get_context("spawn")
    results: dict[int, Any] = {}
    processes, index = [], {}
    try:
        for number, one in enumerate(todo):
            ours, theirs = context.Pipe(duplex=False)
            process = context.Process(target=_work, args=(theirs, job, one), daemon=True)
            process.start()
            theirs.close()
            processes.append(process)
            index[ours] = number
        while index:
            for connection in wait(list(index)):
                assert isinstance(connection, Connection)
                number = index[connection]
                try:
                    kind, value = connection.recv()
                except EOFError:
                    processes[number].join()
                    raise RunError(
                        f"worker {number} ended with status {processes[number].exitcode} and "
                        "without a word: it was killed, or memory ran out (give fewer --workers)"
                    ) from None
                if kind == "bytes":
                    tell(value)
                elif kind == "error":
                    raise value
                else:
                    results[number] = value
                    del index[connection]
    finally:
        for process in processes:
            process.terminate()
            process.join()
    return [results[number] for number in range(len(todo))]


def _work(connection: Connection, job: Callable[[Any, Tell], Any], one: Any) -> None:
    def tell(count: int) -> None:
        try:
            connection.send(("bytes", count))
        except BrokenPipeError:
            os._exit(1)  # whoever wanted the result is gone

    try:
        answer = ("done", job(one, tell))
    except MegaRLError as error:
        answer = ("error", error)
    connection.send(answer)

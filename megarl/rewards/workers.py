"""Processes that answer questions a line at a time, each with a time limit.

For libraries that may think for ever, or that only work in a main thread. A worker is a fresh
interpreter that runs a module: no fork of a process with threads and a GPU, and no second import of
a user's script.
"""

from __future__ import annotations

import json
import os
import queue
import resource
import select
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from typing import Any

from megarl.errors import RunError

START_S = 60.0
"""Until a worker must have said that it is ready."""
READY = "ready"
MEMORY_BYTES = 4 << 30
"""Address space of a worker."""


class Workers:
    """`count` workers that run `python -m module`, started when they are first asked."""

    def __init__(self, module: str, count: int, time_s: float) -> None:
        """time_s: seconds for one answer."""
        self._module, self._count, self._time_s = module, count, time_s
        self._free: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        self._all: list[_Worker] = []
        self._threads: ThreadPoolExecutor | None = None
        self._starting = Lock()

    def ask(self, questions: Sequence[Any]) -> list[Any]:
        """The answer to each question (both JSON), in order; None where none came.

        None: it took too long, or too much memory. RunError for a worker that does not start. Any
        thread may ask.
        """
        with self._starting:
            while len(self._all) < self._count:
                self._all.append(_Worker(self._module))
                self._free.put(self._all[-1])
            if self._threads is None:
                # Kept: the kernel ends a worker with the thread that started it.
                self._threads = ThreadPoolExecutor(self._count)
        return list(self._threads.map(self._ask_one, questions))

    def close(self) -> None:
        """End the workers; the next question starts others."""
        for worker in self._all:
            worker.end()
        self._all, self._free = [], queue.SimpleQueue()

    def _ask_one(self, question: Any) -> Any:
        worker = self._free.get()
        try:
            return worker.ask(question, self._time_s)
        finally:
            self._free.put(worker)


class _Worker:
    """One process; ended and started anew where an answer takes too long."""

    def __init__(self, module: str) -> None:
        self._module = module
        self._process: subprocess.Popen[bytes] | None = None

    def ask(self, question: Any, time_s: float) -> Any:
        """Its answer; None where the process ended, or after `time_s`."""
        process = self._process or self._start()
        assert process.stdin is not None
        try:
            process.stdin.write(json.dumps(question).encode() + b"\n")
            process.stdin.flush()
            line = _line(process, time_s)
        except BrokenPipeError:
            line = b""
        if not line:  # too late, or out of memory
            self.end()
            return None
        return json.loads(line)

    def end(self) -> None:
        """Kill the process."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def _start(self) -> subprocess.Popen[bytes]:
        self._process = subprocess.Popen(
            [sys.executable, "-m", self._module], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        if (line := _line(self._process, START_S)) is None or json.loads(line or "0") != READY:
            self.end()
            raise RunError(f"python -m {self._module} does not start: what it printed says why")
        return self._process


def serve(answer: Any) -> None:
    """A worker's life: `answer(question)` for every line, until its parent is gone."""
    from megarl.runtime.spawn import die_with_parent

    die_with_parent()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no answer
    for value in _answers(answer):
        out.write(json.dumps(value) + "\n")
        out.flush()


def _answers(answer: Any) -> Any:
    yield READY
    for line in sys.stdin:
        yield answer(json.loads(line))


def _line(process: subprocess.Popen[bytes], time_s: float) -> bytes | None:
    """The next line; empty where the process ended, None after `time_s`."""
    assert process.stdout is not None
    handle, found, deadline = process.stdout.fileno(), b"", time.monotonic() + time_s
    ready = select.poll()  # select.select takes no descriptor above 1023
    ready.register(handle, select.POLLIN)
    while not found.endswith(b"\n"):
        left = deadline - time.monotonic()
        if left <= 0 or not ready.poll(left * 1000):
            return None
        if not (part := os.read(handle, 1 << 16)):
            return b""
        found += part
    return found

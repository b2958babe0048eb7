"""Processes that stay warm over many tests: importing Megatron and vLLM costs seconds each time.

One process (worker.py) imports everything once and forks the ranks, so a new set is cheap too.

A test opens a world (a universe with its pools), runs jobs in it, and leaves it. A job is a
function of a module in this folder; it is called on every rank with its `Rank` and picklable
arguments, and what it returns comes back by rank. When a rank raises, or the time is up, the whole
set is killed by its process ids, the test fails with the rank's traceback and the end of every
rank's output, and the next test gets new processes.
"""

from __future__ import annotations

import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, Listener, wait
from pathlib import Path
from typing import Any

from megarl.runtime.bringup import Launch
from megarl.runtime.watch import sweep_shared_memory

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
JOB_TIMEOUT_S = 120.0
AFTER_FAILURE_S = 3.0
"""How long the other ranks may take to answer once one has failed."""
LOG_TAIL_CHARS = 1500


class JobError(AssertionError):
    """A job raised on some rank; the message has its traceback."""


@dataclass
class _Process:
    pid: int
    connection: Connection
    log: Path

    @property
    def alive(self) -> bool:
        """Whether it has not ended (the forker reaps at once)."""
        return Path(f"/proc/{self.pid}").exists()


class Cluster:
    """Warm processes, rank i of every world on process i."""

    def __init__(self, log_dir: Path) -> None:
        self._log_dir = log_dir
        self._ended = log_dir / "ended"
        self._processes: list[_Process] = []
        self._started = 0
        self._open = False
        self._ports: list[int] = []
        self._forker: subprocess.Popen[str] | None = None
        self._listener: Listener | None = None

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        if self._forker is not None:
            self._forker.kill()
            self._forker.communicate()
        if self._listener is not None:
            self._listener.close()

    @contextmanager
    def world(self, *pools: Sequence[int], timeout_s: float = 60.0) -> Iterator[World]:
        """Processes that joined one universe; `world(range(4))` is one pool of four ranks."""
        ranks = tuple(tuple(pool) for pool in pools)
        size = sum(len(pool) for pool in ranks)
        while len(self._processes) < size:
            self._start()
        assert not self._open, "a world is open already: its processes are these"
        self._open = True
        port = free_port()
        self._ports.append(port)
        world = World(self, size)
        try:
            world.call("open", [(rank, size, port, ranks, timeout_s) for rank in range(size)])
            yield world
            world.call("close", [()] * size)
        except BaseException:
            self.kill()
            raise
        finally:
            self._open = False

    def run(self, pools: int | Sequence[Sequence[int]], job: Callable[..., Any], *args: Any) -> Any:
        """One job in a world of its own; an int is the size of a single pool."""
        chosen = [range(pools)] if isinstance(pools, int) else pools
        with self.world(*chosen) as world:
            return world.run(job, *args)

    def exchange(self, messages: Sequence[Any], timeout_s: float) -> list[Any]:
        """Send one message to each of the first processes and collect their answers."""
        used = self._processes[: len(messages)]
        for process, message in zip(used, messages, strict=True):
            process.connection.send_bytes(pickle.dumps(message))
        answers: dict[int, Any] = {}
        failures: dict[int, str] = {}
        deadline = time.monotonic() + timeout_s
        index = {process.connection: rank for rank, process in enumerate(used)}
        while index and (left := deadline - time.monotonic()) > 0:
            for ready in wait(list(index), timeout=left):
                rank = index.pop(ready)  # type: ignore[arg-type]
                try:
                    kind, value = pickle.loads(ready.recv_bytes())  # type: ignore[union-attr]
                except (EOFError, ConnectionError):
                    kind, value = "error", "the process ended without a word"
                if kind == "error":
                    failures[rank] = value
                    deadline = min(deadline, time.monotonic() + AFTER_FAILURE_S)
                answers[rank] = value
        if index and not failures:
            failures[-1] = f"ranks {sorted(index.values())} gave no answer in {timeout_s:.0f} s"
        if failures:
            tails = "".join(_tail(rank, process) for rank, process in enumerate(used))
            first = next(iter(failures))
            where = f"rank {first}" if first >= 0 else "the cluster"
            raise JobError(f"{where}: {failures[first]}\n(ranks failed: {list(failures)})\n{tails}")
        return [answers[rank] for rank in range(len(used))]

    def kill(self) -> None:
        """End all ranks, by their process ids."""
        for process in self._processes:
            if process.alive:
                os.kill(process.pid, signal.SIGKILL)
        for process in self._processes:
            while process.alive:
                time.sleep(0.01)
            process.connection.close()
        self._processes = []
        self._sweep()

    def _sweep(self) -> None:
        """Unlink what vLLM's engines left in shared memory, by the names of our own worlds."""
        for port in self._ports:
            sweep_shared_memory(Launch(0, 1, 0, "127.0.0.1", port, 0, "alone").run_id)
        self._ports = []

    def fork_script(self, log: Path, env: Mapping[str, str], *script: str) -> int:
        """Run `python script...` in a process that has everything imported; its process id."""
        self._order(log, env, list(script))
        with self._accept() as connection:
            pid: int = pickle.loads(connection.recv_bytes())
        return pid

    def status_of(self, pid: int) -> int | None:
        """Exit status of a forked process (minus the signal's number), None while it lives."""
        for line in self._ended.read_text().splitlines() if self._ended.exists() else ():
            if line.startswith(f"{pid} "):
                return int(line.split()[1])
        return None

    def _start(self) -> None:
        log = self._log_dir / f"process{self._started}.log"
        self._started += 1
        self._order(log, {}, None)
        connection = self._accept()
        self._processes.append(_Process(pickle.loads(connection.recv_bytes()), connection, log))

    def _order(self, log: Path, env: Mapping[str, str], script: list[str] | None) -> None:
        forker, _ = self._open_forker()
        assert forker.stdin is not None
        order = {"log": str(log), "env": dict(env), "script": script}
        forker.stdin.write(json.dumps(order) + "\n")
        forker.stdin.flush()

    def _accept(self) -> Connection:
        """The connection of the process that was ordered."""
        forker, listener = self._open_forker()
        while not wait([listener._listener._socket], timeout=0.5):  # type: ignore[attr-defined]
            if forker.poll() is not None:
                printed = (self._log_dir / "forker.log").read_text()[-LOG_TAIL_CHARS:]
                raise JobError(f"the forking process ended:\n{printed}")
        return listener.accept()

    def _open_forker(self) -> tuple[subprocess.Popen[str], Listener]:
        if self._forker is None or self._listener is None:
            self._listener = Listener(family="AF_UNIX")
            with (self._log_dir / "forker.log").open("w") as out:
                self._forker = subprocess.Popen(
                    [
                        sys.executable,
                        str(HERE / "worker.py"),
                        str(self._listener.address),
                        str(self._ended),
                    ],
                    stdin=subprocess.PIPE,
                    stdout=out,
                    stderr=subprocess.STDOUT,
                    env=process_env(),
                    cwd=ROOT,
                    text=True,
                )
        return self._forker, self._listener


class World:
    """The ranks of an open universe."""

    def __init__(self, cluster: Cluster, size: int) -> None:
        self._cluster = cluster
        self.size = size

    def run(
        self, job: Callable[..., Any], *args: Any, timeout_s: float = JOB_TIMEOUT_S
    ) -> list[Any]:
        """Call `job(rank, *args)` on every rank; their results, by rank."""
        message = (job.__module__, job.__name__, args)
        return self.call("run", [message] * self.size, timeout_s)

    def call(
        self, verb: str, contents: Sequence[Any], timeout_s: float = JOB_TIMEOUT_S
    ) -> list[Any]:
        """Send each rank its message."""
        return self._cluster.exchange([(verb, content) for content in contents], timeout_s)


def process_env() -> dict[str, str]:
    """Environment of test processes: one thread each, no compilation, our folders on the path."""
    left_out = ("TORCHELASTIC", "SLURM")
    env = {k: v for k, v in os.environ.items() if not k.startswith(left_out) or k == "SLURM_CONF"}
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        env.pop(name, None)
    env["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(HERE), env.get("PYTHONPATH", "")])
    return env | {
        "OMP_NUM_THREADS": "1",
        "TORCHDYNAMO_DISABLE": "1",
        "PYTHONWARNINGS": "ignore",
        "PYTHONFAULTHANDLER": "1",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "TRANSFORMERS_VERBOSITY": "error",
    }


def free_port() -> int:
    """A TCP port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _tail(rank: int, process: _Process) -> str:
    text = process.log.read_text(errors="replace").strip()
    return f"--- rank {rank} printed ---\n{text[-LOG_TAIL_CHARS:]}\n" if text else ""

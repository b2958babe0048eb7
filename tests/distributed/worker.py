"""One process of a test cluster: joins universes and runs the parent's jobs; see cluster.py."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import pickle
import runpy
import signal
import sys
import threading
import traceback
from dataclasses import dataclass, field
from multiprocessing.connection import Client, Connection
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from megarl.mesh.control import Control
    from megarl.mesh.universe import Universe


@dataclass
class Rank:
    """What a job gets: this process's place in the open universe, and what earlier jobs kept."""

    universe: Universe
    control: Control
    kept: dict[str, Any] = field(default_factory=dict)

    @property
    def rank(self) -> int:
        """Universe rank."""
        return self.universe.rank

    @property
    def run_name(self) -> str:
        """The same on all ranks, different in every world."""
        return self.universe.launch.run_id


class Worker:
    """Answers the parent's messages."""

    def __init__(self) -> None:
        self._rank: Rank | None = None

    def open(
        self, rank: int, size: int, port: int, pools: tuple[tuple[int, ...], ...], timeout_s: float
    ) -> None:
        """Join a universe."""
        from megarl.mesh.control import Control
        from megarl.mesh.universe import Pool, Universe
        from megarl.runtime.bringup import Launch
        from megarl.train.main import prepare_process

        for name in ("RANK", "WORLD_SIZE"):
            os.environ.pop(name, None)
        launch = Launch(rank, size, rank, "127.0.0.1", port, 0, "alone")
        prepare_process(launch)
        named = [Pool(f"pool{index}", ranks) for index, ranks in enumerate(pools)]
        universe = Universe(launch, named, timeout_s)
        self._rank = Rank(universe, Control(universe, lambda *_: None))

    def run(self, module: str, name: str, args: tuple[Any, ...]) -> Any:
        """Run a job."""
        return getattr(importlib.import_module(module), name)(self._rank, *args)

    def close(self) -> None:
        """Leave the universe, with the engine that jobs kept."""
        assert self._rank is not None
        self._rank.universe.barrier()
        engine = self._rank.kept.pop("engine", None)
        if engine is not None:
            engine.close()
        self._rank.universe.close()
        self._rank = None


def serve(connection: Connection) -> None:
    """Answer messages until the parent closes the connection."""
    worker = Worker()
    while True:
        try:
            verb, content = pickle.loads(connection.recv_bytes())
        except (EOFError, ConnectionError):
            return
        try:
            answer = ("ok", getattr(worker, verb)(*content))
        except BaseException:
            answer = ("error", traceback.format_exc())
        # Plain pickle: torch's own would hand over file descriptors instead of numbers.
        connection.send_bytes(pickle.dumps(answer))


def main(address: str, ended: str) -> None:
    """Import what the ranks need, then fork one for each line of standard input.

    A line is a json object: `log` (where it prints), `env`, and `script` with its arguments, or
    null for a rank that serves the parent. Exit statuses are appended to the file `ended`.
    """
    from megarl.runtime import megatron_cpu

    megatron_cpu.install()
    importlib.import_module("megarl.train.build")
    importlib.import_module("vllm.entrypoints.llm")
    assert threading.active_count() == 1, "forking would lose these threads"

    def reap(*_: object) -> None:
        with contextlib.suppress(ChildProcessError):
            while (found := os.waitpid(-1, os.WNOHANG))[0]:
                with open(ended, "a") as file:
                    file.write(f"{found[0]} {os.waitstatus_to_exitcode(found[1])}\n")

    signal.signal(signal.SIGCHLD, reap)
    for line in sys.stdin:
        order = json.loads(line)
        if os.fork():
            continue
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.environ.update(order["env"])
        with Client(address) as connection:
            connection.send_bytes(pickle.dumps(os.getpid()))
            if order["script"] is None:
                serve(connection)
                os._exit(0)
        os._exit(run_script(*order["script"]))


def run_script(path: str, *arguments: str) -> int:
    """Run a file as `python path arguments...` would; its exit status."""
    sys.argv = [path, *arguments]
    try:
        runpy.run_path(path, run_name="__main__")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 0


if __name__ == "__main__":
    main(*sys.argv[1:])

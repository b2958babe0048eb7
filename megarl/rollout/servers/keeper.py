"""Starts one vLLM server and outlives it: however the run ends, no process of the server stays.

Runs beside the server, on its node. It tells the run where the server is in one line of JSON on
standard output; when its standard input closes, which the end of the run does in any case, it ends
the server with all processes and shared memory of it.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from megarl.runtime.spawn import adopt_orphans

TERM_GRACE_S = 10.0
LOOK_S = 1.0
"""Between two looks at the server's shared memory."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Until the server has ended; returns its status."""
    parser = argparse.ArgumentParser(prog="python -m megarl.rollout.servers.keeper")
    parser.add_argument("--host", default="127.0.0.1", help="address that the server binds to")
    parser.add_argument("--log", type=Path, required=True, help="file for what it prints")
    parser.add_argument("told", nargs=argparse.REMAINDER, help="-- and vLLM's arguments")
    parsed = parser.parse_args(arguments)
    adopt_orphans()
    told = [*parsed.told[1:], "--host", parsed.host, "--port", str(_free_port(parsed.host))]
    with parsed.log.open("wb") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *told],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    where = {"host": socket.gethostname(), "port": int(told[-1]), "pid": server.pid}
    sys.stdout.write(json.dumps(where) + "\n")
    sys.stdout.flush()
    return _keep(server)


def _free_port(host: str) -> int:
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def _keep(server: subprocess.Popen[bytes]) -> int:
    ends = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ends.set())
    signal.signal(signal.SIGINT, lambda *_: ends.set())

    def read() -> None:
        while os.read(0, 4096):
            pass
        ends.set()

    threading.Thread(target=read, daemon=True).start()
    shared: set[Path] = set()
    while server.poll() is None and not ends.wait(LOOK_S):
        shared |= {file for pid in descendants(os.getpid()) for file in shared_memory_of(pid)}
    _end(server)
    for file in shared:  # what a killed process could not remove
        file.unlink(missing_ok=True)
    return server.returncode


def _end(server: subprocess.Popen[bytes]) -> None:
    """Politely first; then everything that is left below this process."""
    if server.poll() is None:
        server.terminate()
        with suppress(subprocess.TimeoutExpired):
            server.wait(TERM_GRACE_S)
    deadline = time.monotonic() + TERM_GRACE_S
    while (left := descendants(os.getpid())) and time.monotonic() < deadline:
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        time.sleep(0.02)
    server.poll()


def descendants(pid: int) -> list[int]:
    """Processes below one, parents first."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):  # it may end while it is read
            for child in task.read_text().split():
                found += [int(child), *descendants(int(child))]
    return found


def shared_memory_of(pid: int) -> set[Path]:
    """The files in shared memory that a process has mapped."""
    try:
        lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    except OSError:
        return set()
    return {Path(line.split()[5]) for line in lines if " /dev/shm/" in line}


if __name__ == "__main__":
    sys.exit(main())

"""Untrusted programs under limits: no network, little time and memory, nothing left behind.

Each program runs in a process of its own below `sandbox_child.py`, in a new folder that goes
afterwards. It can read what this user can read; where the kernel has user namespaces, from Linux
5.12 on, it can write nothing but its folder.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megarl.errors import RunError
from megarl.rewards.sandbox_child import NOT_ISOLATED, NOT_STARTED, TIMED_OUT

CHILD = str(Path(__file__).with_name("sandbox_child.py"))
GRACE_S = 10.0
"""Beyond its time, until the process that watches a program must have ended."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one program."""

    wall_s: float = 10.0
    """Seconds on the clock, of the program and all that it starts."""
    cpu_s: int = 10
    """Seconds of processor time, of each process."""
    memory_bytes: int = 1 << 30
    """Address space, of each process."""
    file_bytes: int = 16 << 20
    """Size of a file, and of the folder where namespaces are there."""
    output_bytes: int = 1 << 20
    """Of the standard output and error that are read."""
    processes: int = 64
    """At the same time, threads included, where namespaces are there."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a program ended."""

    status: int
    """Exit status; 128 + n where signal n ended it."""
    output: str
    errors: str
    timed_out: bool


def run_program(source: str, stdin: str, limits: Limits) -> Outcome:
    """Run Python source; the interpreter is this one, with its packages.

    RunError where the machine cannot keep a program from the network, or set its limits.
    """
    with tempfile.TemporaryDirectory(prefix="megarl-sandbox-") as name:
        work = Path(name) / "work"
        work.mkdir()
        script = Path(name) / "program.py"
        script.write_text(source, encoding="utf-8", errors="replace")
        facts = {
            "folder": str(work), "wall_s": limits.wall_s, "cpu_s": limits.cpu_s,
            "memory_bytes": limits.memory_bytes, "file_bytes": limits.file_bytes,
            "processes": limits.processes,
        }  # fmt: skip
        command = [sys.executable, "-I", "-S", CHILD, json.dumps(facts)]
        streams = [Path(name) / part for part in ("stdin", "stdout", "stderr")]
        streams[0].write_text(stdin, encoding="utf-8", errors="replace")
        with (
            streams[0].open("rb") as given,
            streams[1].open("wb") as out,
            streams[2].open("wb") as err,
        ):
            status = _status(
                [*command, sys.executable, "-I", str(script)],
                limits.wall_s + GRACE_S,
                stdin=given, stdout=out, stderr=err,
            )  # fmt: skip
        if status == NOT_STARTED:
            raise RunError(f"code cannot be run here: {_read(streams[2], 500).strip()}")
        if status == NOT_ISOLATED:
            raise RunError(
                "code cannot be run here: this machine has neither user namespaces nor a known "
                "seccomp architecture, so that nothing would keep it from the network"
            )
        output, errors = (_read(stream, limits.output_bytes) for stream in streams[1:])
    return Outcome(status, output, errors, status == TIMED_OUT)


def _status(command: list[str], time_s: float, **streams: Any) -> int:
    """The exit status of the process that watches a program; TIMED_OUT where it does not end."""
    try:
        return subprocess.run(command, check=False, timeout=time_s, **streams).returncode
    except subprocess.TimeoutExpired:  # by now it is killed, and its namespaces with it
        return TIMED_OUT


def _read(path: Path, limit: int) -> str:
    with path.open("rb") as file:
        return file.read(limit).decode("utf-8", errors="replace")

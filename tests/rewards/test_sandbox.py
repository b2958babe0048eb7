"""Untrusted programs: what they may do, what they may not, and that nothing is left of them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from megarl.errors import RunError
from megarl.rewards import sandbox_child
from megarl.rewards.sandbox import Limits, run_program


@pytest.fixture(params=["namespaces", "filter alone"])
def machine(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A kernel with user namespaces, and one that refuses them."""
    if request.param == "filter alone":
        body = "def _unshare(folder: str, size: int) -> bool:\n    return False\n"
        changed_child(tmp_path, monkeypatch, body)
    return str(request.param)


def changed_child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    """Have programs watched by a process in which a function is another one."""
    child = tmp_path / "child.py"
    source = Path(sandbox_child.__file__).read_text()
    child.write_text(source.replace("if __name__ ==", body + "\n\nif __name__ =="))
    monkeypatch.setattr("megarl.rewards.sandbox.CHILD", str(child))


def run(source: str, stdin: str = "", **limits: float) -> tuple[int, str, str]:
    outcome = run_program(textwrap.dedent(source), stdin, Limits(**limits))  # type: ignore[arg-type]
    return outcome.status, outcome.output, outcome.errors


def processes(mark: str) -> list[str]:
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found.append(file.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        except OSError:
            continue
    return [line for line in found if mark in line]


def test_streams_packages_and_status(machine: str) -> None:
    assert run("print(input()[::-1]); import numpy; print(numpy.arange(3).sum())", "abc") == (
        0, "cba\n3\n", "",
    )  # fmt: skip
    status, output, errors = run("import sys; sys.stderr.write('no'); sys.exit(7)")
    assert (status, output, errors) == (7, "", "no")
    status, _, errors = run("1 / 0")
    assert status == 1 and "ZeroDivisionError" in errors
    assert run("import os; os.kill(os.getpid(), 11)")[0] == 128 + 11


def test_a_program_cannot_leave_as_a_broken_machine_would(machine: str) -> None:
    """Those statuses end a run: a program that takes one has only failed."""
    for status in (sandbox_child.NOT_ISOLATED, sandbox_child.NOT_STARTED):
        assert run(f"import sys; sys.exit({status})")[0] == 1


def test_a_fork_bomb_ends_with_its_time(machine: str) -> None:
    source = "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass"
    if machine == "filter alone":  # there nothing limits how many: as few as one can be sure of
        source = "import os, time\nfor _ in range(6):\n    os.fork()\ntime.sleep(60)"
    began = time.monotonic()
    outcome = run_program(source, "", Limits(wall_s=1.0, cpu_s=2))
    assert outcome.timed_out and time.monotonic() - began < 15


def test_limits_that_cannot_be_set_are_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And are no wrong answer of the program's: a user may not raise what an administrator set."""
    body = "def _limit(limits, own_namespaces):\n    raise OSError(1, 'not permitted')\n"
    changed_child(tmp_path, monkeypatch, body)
    with pytest.raises(RunError, match="code cannot be run here: limits .*not permitted"):
        run("print(1)")


def test_no_network(machine: str) -> None:
    """Neither to this machine nor to others, by sockets of any kind."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = server.getsockname()[1]
        source = f"""
            import socket
            for make in (
                lambda: socket.create_connection(("127.0.0.1", {port}), 2),
                lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM),
                lambda: socket.socket(socket.AF_UNIX),
            ):
                try:
                    make()
                    print("open")
                except PermissionError:
                    print("refused")
        """
        assert run(source)[1] == "refused\n" * 3


def test_limits_of_time(machine: str) -> None:
    started = time.monotonic()
    status, output, _ = run("print('on', flush=True)\nwhile True: pass", wall_s=1.0)
    assert status == 124 and output == "on\n" and time.monotonic() - started < 8
    assert run("import time; time.sleep(60)", wall_s=0.5)[0] == 124
    # Of the processor: SIGKILL at the hard limit.
    assert run("while True: pass", cpu_s=1, wall_s=20)[0] == 128 + 9


def test_limits_of_memory_files_and_output(machine: str) -> None:
    status, _, errors = run("x = bytearray(600 << 20)", memory_bytes=300 << 20)
    assert status == 1 and "MemoryError" in errors
    source = "f = open('big', 'wb')\nfor _ in range(100): f.write(bytes(1 << 20)); f.flush()"
    status, _, errors = run(source, file_bytes=4 << 20)
    assert status != 0 and ("File too large" in errors or "No space left" in errors)
    status, output, _ = run("while True: print('a' * 1000)", wall_s=20, file_bytes=1 << 20)
    assert status != 0 and len(output) <= 1 << 20


@pytest.mark.parametrize("wall_s", [4.0, 30.0])
def test_nothing_is_left_behind(machine: str, wall_s: float) -> None:
    """Children in sessions of their own, whose parents are gone; also where time is up."""
    source = f"""
        import os, sys, time
        for _ in range(5):
            if os.fork() == 0:
                os.setsid()
                if os.fork() == 0:
                    words = [sys.executable, "-c", "import time; time.sleep(77.25)"]
                    os.execv(sys.executable, words)
                os._exit(0)
        time.sleep(0.5)
        print("forked", flush=True)
        time.sleep({0 if wall_s > 4 else 60})
    """
    status, output, _ = run(source, wall_s=wall_s)
    assert output == "forked\n" and status == (0 if wall_s > 4 else 124)
    assert not processes("sleep(77.25)")


def test_it_ends_with_whoever_asked() -> None:
    program = (
        "from megarl.rewards.sandbox import Limits, run_program\n"
        "run_program('import time; time.sleep(66.5)', '', Limits(wall_s=60))\n"
    )
    asking = subprocess.Popen([sys.executable, "-c", program], env=os.environ)
    deadline = time.monotonic() + 30
    while len(processes("megarl-sandbox-")) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    asking.kill()
    asking.wait()
    while processes("megarl-sandbox-"):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_written_file_is_nowhere_else(machine: str, tmp_path: Path) -> None:
    status, output, _ = run("open('x', 'w').write('mine'); print(open('x').read())")
    assert (status, output) == (0, "mine\n")
    if machine == "namespaces":
        status, _, errors = run(f"open('{tmp_path}/y', 'w')")
        assert status == 1 and "Read-only file system" in errors and not (tmp_path / "y").exists()

"""Local ranks are started, watched and ended together."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from megarl.runtime import spawn

RANK = """
import json, os, signal, sys, time
from pathlib import Path
from megarl.runtime import spawn

folder, what = Path(sys.argv[1]), sys.argv[2]
rank = int(os.environ["RANK"])
spawn.die_with_parent()
(folder / f"{rank}.json").write_text(json.dumps(dict(os.environ) | {"PID": str(os.getpid())}))
if what == "stubborn":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if rank == 1 and what in ("fail", "stubborn"):
    sys.exit(3)
if rank == 1 and what == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
if what != "end":
    time.sleep(60)
"""

PARENT = """
import signal, sys
from megarl.runtime import spawn
# A shell that starts the tests in the background has them ignore it.
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.exit(spawn.spawn(sys.argv[1:], 2, print, module="rank_program"))
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "rank_program.py").write_text(RANK)
    root = str(Path(__file__).parents[2])
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{root}")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(spawn, "PEER_GRACE_S", 0.3)
    monkeypatch.setattr(spawn, "TERM_GRACE_S", 0.5)
    return tmp_path


def start(folder: Path, what: str, num_ranks: int = 2) -> tuple[int, list[str]]:
    """Status and messages; ranks that were left alone would sleep for a minute."""
    said: list[str] = []
    arguments = [str(folder), what]
    started = time.monotonic()
    status = spawn.spawn(arguments, num_ranks, said.append, module="rank_program")
    assert time.monotonic() - started < 45
    return status, said


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def pids(folder: Path) -> list[int]:
    return [int(json.loads(file.read_text())["PID"]) for file in sorted(folder.glob("*.json"))]


def test_ranks_see_what_torchrun_would_set(folder: Path) -> None:
    assert start(folder, "end") == (0, [])
    envs = spawn.rank_environments({"OMP_NUM_THREADS": "5", "X": "y"}, 3, 1234)
    assert [env["RANK"] for env in envs] == ["0", "1", "2"]
    assert {env["MASTER_PORT"] for env in envs} == {"1234"}
    assert {(env["WORLD_SIZE"], env["OMP_NUM_THREADS"], env["X"]) for env in envs} == {
        ("3", "5", "y")
    }
    threads = spawn.rank_environments({}, 1000, 1)[0]["OMP_NUM_THREADS"]
    assert threads == "1"
    assert len(pids(folder)) == 2


def test_one_that_fails_ends_the_others_and_gives_the_status(folder: Path) -> None:
    status, said = start(folder, "fail", 3)
    assert status == 3 and len(said) == 1
    assert said[0].startswith("rank 1 (process ")
    assert said[0].endswith("left without a word, with exit status 3")
    assert not any(map(is_alive, pids(folder)))


def test_one_that_does_not_want_to_end_is_killed(folder: Path) -> None:
    assert start(folder, "stubborn")[0] == 3
    assert not any(map(is_alive, pids(folder)))


def test_one_that_was_killed_is_named(folder: Path) -> None:
    status, said = start(folder, "killed")
    assert status == 128 + signal.SIGKILL
    assert len(said) == 1 and said[0].startswith("rank 1 (process ")
    assert said[0].endswith("was killed by SIGKILL")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_rank_outlives_its_parent(folder: Path, number: signal.Signals) -> None:
    command = [sys.executable, "-c", PARENT, str(folder), "sleep"]
    parent = subprocess.Popen(command, env=dict(os.environ))
    wait_for(lambda: len(list(folder.glob("*.json"))) == 2)
    wait_for(lambda: all(file.stat().st_size for file in folder.glob("*.json")))
    ranks = pids(folder)
    assert all(map(is_alive, ranks))
    parent.send_signal(number)
    status = parent.wait(20)
    assert status == (-number if number == signal.SIGKILL else 128 + number)
    wait_for(lambda: not any(map(is_alive, ranks)))

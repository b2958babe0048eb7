"""The launcher of one node: it hands signals to its ranks, and leaves with their status."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cluster import process_env

from megarl.slurm.node import own_failures, worst

pytestmark = pytest.mark.dist
HERE = Path(__file__).parent


def start(what: str, folder: Path) -> subprocess.Popen[str]:
    env = process_env()
    env["PYTHONPATH"] = os.pathsep.join([str(HERE), env["PYTHONPATH"]])
    command = [sys.executable, "-m", "megarl.slurm.node", "--nproc-per-node=2"]
    return subprocess.Popen(
        [*command, "-m", "listening_rank", what, str(folder)],
        env=env,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_ranks(process: subprocess.Popen[str], folder: Path) -> None:
    deadline = time.monotonic() + 60
    while len(list(folder.glob("*.up"))) < 2:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize("name", ["SIGUSR1", "SIGTERM"])
def test_ranks_are_told_and_waited_for(name: str, tmp_path: Path) -> None:
    process = start("listen", tmp_path)
    wait_for_ranks(process, tmp_path)
    process.send_signal(signal.Signals[name])
    assert process.wait(40) == 75, process.communicate()[1]
    for rank in (0, 1):
        assert "SIGUSR1" in (tmp_path / f"{rank}.signals").read_text()
        assert (tmp_path / f"{rank}.up").read_text() == f"{rank} {rank} 2"


def test_a_rank_that_cannot_listen_yet_asks_for_another_start(tmp_path: Path) -> None:
    process = start("deaf", tmp_path)
    wait_for_ranks(process, tmp_path)
    process.send_signal(signal.SIGUSR1)
    assert process.wait(40) == 75


def test_a_failure_keeps_its_status(tmp_path: Path) -> None:
    process = start("fail", tmp_path)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 3
    assert "megarl: error: ranks [1] ended with 3" in said


@pytest.mark.parametrize(
    ("codes", "status"),
    [([75, 1], 75), ([-signal.SIGUSR1], 75), ([2, 1], 2), ([-signal.SIGKILL, 1], 137), ([], 1)],
)
def test_the_worst_status_counts(codes: list[int], status: int) -> None:
    assert worst(codes) == status


def test_who_was_ended_for_another_is_no_failure() -> None:
    """torchrun ends the rest with SIGTERM, and may see both at once."""
    assert own_failures({0: -signal.SIGTERM, 1: 3}) == {1: 3}
    assert own_failures({0: -signal.SIGTERM, 1: -signal.SIGTERM}) == {0: -15, 1: -15}
    assert own_failures({0: 75, 1: -signal.SIGKILL}) == {0: 75, 1: -9}

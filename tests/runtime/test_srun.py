"""Bring-up and failure under a real srun, where a SLURM controller answers; skipped elsewhere.

One machine with two pretended nodes will do: four tasks are started, however they are placed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cluster import process_env

SCRIPT = str(Path(__file__).with_name("failing_run.py"))
LIMIT_S = 120.0


def slurm_answers() -> bool:
    """Whether jobs can be started here; where SLURM_CONF says so, they are to be."""
    if shutil.which("srun") is None:
        return False
    if "SLURM_CONF" in os.environ:
        return True
    asked = subprocess.run(["sinfo", "-h", "-t", "idle,mixed"], capture_output=True, check=False)
    return asked.returncode == 0 and bool(asked.stdout.strip())


pytestmark = [
    pytest.mark.dist,
    pytest.mark.slow,
    pytest.mark.skipif(not slurm_answers(), reason="no SLURM controller with free nodes answers"),
]


def srun(scenario: str, folder: Path) -> tuple[int, str, float]:
    """Status, output and seconds of four ranks in a scenario of failing_run.py."""
    command = ["srun", "-n4", "--overcommit", "--kill-on-bad-exit=1", sys.executable, SCRIPT]
    started = time.monotonic()
    done = subprocess.run(
        [*command, scenario, str(folder)],
        env=process_env() | {"MASTER_ADDR": "127.0.0.1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    return done.returncode, done.stdout, time.monotonic() - started


def test_a_run_that_ends_in_order(tmp_path: Path) -> None:
    status, output, _ = srun("in-order", tmp_path)
    assert status == 0, output
    assert sorted(path.name for path in (tmp_path / "logs").iterdir()) == [
        f"rank_{rank}.log" for rank in range(4)
    ]


def test_a_raise_on_one_rank(tmp_path: Path) -> None:
    status, output, seconds = srun("raise", tmp_path)
    assert status != 0 and seconds < LIMIT_S
    assert "megarl: rank 2 failed at step 4, verb 2 (second): ValueError: sample 17" in output
    time.sleep(2.0)
    left = {(tmp_path / f"{rank}.ready").read_text().split()[1] for rank in range(4)}
    assert not [p.name for p in Path("/dev/shm").iterdir() if any(n in p.name for n in left)]

"""Where SLURM is installed, its tests are run or fail: they are not skipped."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import local_slurm
import pytest

RUN = (Path(__file__).parents[2] / ".ci/run").read_text()


@pytest.mark.skipif(local_slurm.missing() is not None, reason=str(local_slurm.missing()))
@pytest.mark.parametrize(("starts", "status"), [(False, 1), (True, 0)])
def test_what_is_installed_has_to_start(starts: bool, status: int) -> None:
    """The step of .ci/run, with a start of SLURM that fails or succeeds."""
    functions = RUN[RUN.index('slurm_dir=""') : RUN.index("trap stop_slurm")]
    start = f"python3() {{ return {int(not starts)}; }}"
    program = (
        f"set -u\n{functions}\n{start}\nstart_slurm\necho $? ${{SLURM_CONF:-none}}\nstop_slurm"
    )
    env = {name: value for name, value in os.environ.items() if name != "SLURM_CONF"}
    done = subprocess.run(["bash"], input=program, env=env, capture_output=True, text=True)
    found, conf = done.stdout.split()
    assert int(found) == status and (conf != "none") == starts


@pytest.mark.skipif(local_slurm.missing() is not None, reason=str(local_slurm.missing()))
def test_the_version_is_known_before_there_is_a_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a machine where SLURM was only just installed."""
    monkeypatch.setenv("SLURM_CONF", str(tmp_path / "none.conf"))
    assert local_slurm._version() >= (20, 2)

"""A SLURM of our own for the tests: the one that SLURM_CONF names, or one started for them.

They are skipped where it is not installed. One that is and does not start is a failure.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import local_slurm  # noqa: E402


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """slurm.conf of a SLURM that local_slurm.py started; SLURM_CONF names it while it is used."""
    given = os.environ.get("SLURM_CONF")
    if given and (Path(given).parent / local_slurm.STARTED).exists():
        yield Path(given)
        return
    if problem := local_slurm.missing():
        pytest.skip(problem)
    folder = tmp_path_factory.mktemp("slurm")
    try:
        conf = local_slurm.start(folder)
    except SystemExit as problem:  # which would end pytest itself
        pytest.fail(str(problem))
    patch = pytest.MonkeyPatch()
    patch.setenv("SLURM_CONF", str(conf))
    try:
        yield folder / "slurm.conf"
    finally:
        local_slurm.stop(folder)
        patch.undo()

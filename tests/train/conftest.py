"""Stages that learn from examples: runs in folders of their own, and undisturbed ones."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cluster import Cluster
from forked_runs import ForkedRuns, outcome
from stage_runs import STEPS, write_stage
from tiny_models import TinyModels


@pytest.fixture
def runs(cluster: Cluster, tiny: TinyModels, tmp_path: Path) -> Callable[..., ForkedRuns]:
    """A stage in a folder of the test's own, not yet run."""

    def make(stage: str, **checkpoint: Any) -> ForkedRuns:
        write_stage(tmp_path / stage, stage, tiny, **checkpoint)
        return ForkedRuns(cluster, tmp_path / stage, stage)

    return make


@dataclass
class Whole:
    """Undisturbed runs that keep all their checkpoints; each stage runs when it is asked for."""

    cluster: Cluster
    tiny: TinyModels
    folder: Path

    def __call__(self, stage: str) -> Any:
        """What it ends with."""
        return outcome(self._run(stage).run_dir, STEPS)

    def copy(self, stage: str, folder: Path) -> ForkedRuns:
        """The same run in another folder, with its data where they are."""
        run = self._run(stage)
        shutil.copytree(run.run_dir, folder / "run")
        return ForkedRuns(self.cluster, folder, stage, run.config)

    def _run(self, stage: str) -> ForkedRuns:
        run = ForkedRuns(self.cluster, self.folder / stage, stage)
        if not run.folder.exists():
            write_stage(run.folder, stage, self.tiny, keep_last=0)
            run.to_the_end()
        return run


@pytest.fixture(scope="session")
def whole(cluster: Cluster, tiny: TinyModels, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """Undisturbed runs of the stages."""
    return Whole(cluster, tiny, tmp_path_factory.mktemp("whole"))

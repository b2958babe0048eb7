"""Files that `validate` finds nothing wrong with."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from tiny_folder import write_folder, write_jsonl


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder and a data set that are right."""
    folder = tmp_path_factory.mktemp("made")
    write_folder(folder / "model")
    write_jsonl(folder / "train.jsonl")
    return folder


@pytest.fixture
def own(made: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(made, tmp_path / "own"))

"""Fixtures: processes (see distributed/cluster.py), tiny models, and a folder that is right."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "distributed"))

from cluster import Cluster  # noqa: E402
from tiny_folder import write_folder, write_jsonl  # noqa: E402
from tiny_models import TinyModels  # noqa: E402
from vllm_server import Servers  # noqa: E402


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Up to six processes that stay warm over the whole session; started when they are needed."""
    with Cluster(tmp_path_factory.mktemp("cluster")) as started:
        yield started


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyModels:
    """Folders of tiny Hugging Face models, each made when it is asked for."""
    return TinyModels(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def servers(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """Starts vLLM servers, which find the backend `megarl` by the entry point of the package."""
    names = entry_points(group="vllm.general_plugins").names
    assert "megarl" in names, "install the package (again): pip install --no-deps -e ."
    with Servers(cluster, tmp_path_factory.mktemp("servers")) as started:
        yield started


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder and a data set that are right."""
    folder = tmp_path_factory.mktemp("made")
    write_folder(folder / "model")
    write_jsonl(folder / "train.jsonl")
    return folder

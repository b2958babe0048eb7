"""Weights to real vLLM servers over HTTP."""

from __future__ import annotations

from pathlib import Path

import jobs_transfer as jobs
import pytest
from cluster import Cluster
from jobs_transfer import PROMPT, TOKENS, Place
from tiny_models import TinyModels
from vllm_server import servers

from megarl.mesh.layout import MeshLayout

pytestmark = [pytest.mark.dist, pytest.mark.vllm]


def test_two_servers(cluster: Cluster, tiny: TinyModels, tmp_path: Path) -> None:
    path = tiny("llama")
    answers = []
    with servers(path, tmp_path, 2) as running, cluster.world(range(2)) as world:
        places = [Place(server.url) for server in running]
        world.run(jobs.build, path, MeshLayout(tp=2), places)
        world.run(jobs.keep_path, path)
        for version in (1, 2):
            reports = world.run(jobs.sync, version, str(tmp_path / f"hf{version}"))
            print(reports)
            answers.append([server.answer(PROMPT, TOKENS) for server in running])
            world.run(jobs.train)
        print(answers)
        world.run(jobs.close)
    for version in (1, 2):
        print(cluster.run(1, jobs.reference_answer, str(tmp_path / f"hf{version}")))

"""The actor's weights to a `vllm.LLM` that the trainer's rank 0 drives itself.

Proven: it says what a fresh vLLM says that loads the same weights, with the engine in rank 0's own
process, and in processes of its own.
"""

from __future__ import annotations

from pathlib import Path

import jobs_transfer as jobs
import pytest
from cluster import Cluster
from tiny_models import TinyModels
from vllm_server import Servers, same_answer

from megarl.mesh.layout import MeshLayout

pytestmark = [pytest.mark.dist, pytest.mark.vllm]


@pytest.mark.parametrize(
    ("own_processes", "layout"),
    [
        pytest.param(False, MeshLayout(), id="in-process"),
        pytest.param(True, MeshLayout(pp=2), id="own-processes", marks=pytest.mark.slow),
    ],
)
def test_llm_says_what_the_weights_say(
    own_processes: bool,
    layout: MeshLayout,
    cluster: Cluster,
    tiny: TinyModels,
    servers: Servers,
    tmp_path: Path,
) -> None:
    path, folders = tiny("llama-tied"), [tmp_path / f"hf{step}" for step in range(2)]
    answers = []
    with cluster.world(range(layout.size)) as world:
        world.run(jobs.build, path, layout)
        world.run(jobs.make_llm, path, own_processes)
        for version, folder in enumerate(folders, 1):
            sent = world.run(jobs.sync, version)
            needed = world.run(jobs.needed_bytes)[0]
            assert sum(each.counted_bytes for each in sent) == needed > 0
            answers.append(world.run(jobs.ask_llm)[0])
            world.run(jobs.export, str(folder), path)
            world.run(jobs.train)
        world.run(jobs.close)
        world.run(jobs.end_llm)
    expected = servers.reference(folders)
    assert not same_answer(*expected)
    assert all(map(same_answer, answers, expected))

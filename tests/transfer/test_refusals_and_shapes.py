"""What cannot work is refused with its numbers, before a byte moves; and servers of other shapes.

Proven: tensor-parallel servers, experts dealt over workers and tied embeddings get their weights;
a server without the backend, of another model, split otherwise than the trainer was told, or not
there at all is named with the cause on every rank.
"""

from __future__ import annotations

from pathlib import Path

import jobs_transfer as jobs
import pytest
from cluster import Cluster, free_port
from jobs_transfer import Place
from tiny_models import TinyModels
from vllm_server import Servers, same_answer

from megarl.layout import ReplicaLayout
from megarl.mesh.layout import MeshLayout

pytestmark = [pytest.mark.dist, pytest.mark.vllm]


def test_refusals(cluster: Cluster, tiny: TinyModels, servers: Servers) -> None:
    path = tiny("llama")
    without = servers.start(path, backend="")
    other = servers.start(tiny("qwen2"))
    with cluster.world(range(2)) as world:
        world.run(jobs.build, path, MeshLayout(pp=2))
        for server in (without, other):
            server.wait_until_ready()
        nobody = f"http://127.0.0.1:{free_port()}"
        cases = {
            Place(nobody): ("no answer",),
            Place(without.url): ("Weight transfer not configured",),
            Place(other.url, ReplicaLayout(2)): ("has 1 workers", "t2", "ReplicaLayout"),
            Place(other.url): ("model is not what the layout tables say",),
        }
        for place, parts in cases.items():
            world.run(jobs.make_transfer, [place])
            errors = world.run(jobs.failing_sync, 1)
            assert errors[0] == errors[1] and errors[0][1] == 0
            for part in (*parts, "server 0", "version is still 0"):
                assert part in errors[0][0], errors[0][0]
            assert place.url not in errors[0][0]
        for servers_named, text in (
            ([], "names of their own are needed"),
            ([Place(nobody), Place(nobody)], "is the same server as another"),
        ):
            errors = world.run(jobs.refused_transfer, servers_named)
            assert errors[0] == errors[1] and text in errors[0]
        assert not without.is_paused and other.is_paused


SHAPES = {
    "tp2": ("qwen2", MeshLayout(pp=2), ReplicaLayout(2)),
    "tp2-experts": ("mixtral", MeshLayout(tp=2, ep=2, sequence_parallel=True), ReplicaLayout(2)),
    "tp2-experts-dealt": (
        "qwen3-moe",
        MeshLayout(dp=2, ep=2),
        ReplicaLayout(2, expert_parallel=True),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SHAPES)
def test_servers_of_two_workers(
    name: str, cluster: Cluster, tiny: TinyModels, servers: Servers, tmp_path: Path
) -> None:
    family, layout, replica = SHAPES[name]
    path, folder = tiny(family), tmp_path / "hf"
    server = servers.start(path, replica=replica)
    with cluster.world(range(2)) as world:
        world.run(jobs.build, path, layout)
        server.wait_until_ready()
        world.run(jobs.make_transfer, [Place(server.url, replica)])
        for version in (1, 2):
            world.run(jobs.train)
            sent = world.run(jobs.sync, version)
            assert sum(each.counted_bytes for each in sent) == world.run(jobs.needed_bytes)[0]
        answer = server.answer()
        world.run(jobs.export, str(folder), path)
        world.run(jobs.close)
    server.end()
    assert same_answer(answer, servers.reference([folder])[0])

"""A trainer that dies in the middle of an update: its server stays paused, a new one goes on."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import jobs_transfer as jobs
import pytest
from cluster import Cluster, JobError
from jobs_transfer import Place
from tiny_models import TinyModels
from vllm_server import Servers, same_answer

from megarl.mesh.layout import MeshLayout

pytestmark = [pytest.mark.dist, pytest.mark.vllm, pytest.mark.slow]


def test_another_trainer_takes_over(
    cluster: Cluster, tiny: TinyModels, servers: Servers, tmp_path: Path
) -> None:
    path, layout = tiny("llama"), MeshLayout(tp=2)
    server = servers.start(path)
    halfway, go_on = tmp_path / "halfway", tmp_path / "go_on"

    def kill_when_halfway(pids: list[int]) -> None:
        while not halfway.exists():
            time.sleep(0.01)
        for pid in pids:
            os.kill(pid, signal.SIGKILL)

    with pytest.raises(JobError), cluster.world(range(2)) as world:
        world.run(jobs.build, path, layout)
        server.wait_until_ready()
        world.run(jobs.make_transfer, [Place(server.url)])
        world.run(jobs.sync, 1)
        pids = [process.pid for process in cluster._processes[:2]]
        threading.Thread(target=kill_when_halfway, args=(pids,)).start()
        world.run(jobs.held_sync, 2, str(halfway), str(go_on))
    assert server.is_paused and server.version == "1"
    with cluster.world(range(2)) as world:
        world.run(jobs.build, path, layout)
        world.run(jobs.make_transfer, [Place(server.url)])
        world.run(jobs.train)
        world.run(jobs.sync, 3)
        answer = server.answer()
        world.run(jobs.export, str(tmp_path / "hf"), path)
        world.run(jobs.close)
    assert server.version == "3"
    assert same_answer(answer, servers.reference([tmp_path / "hf"])[0])

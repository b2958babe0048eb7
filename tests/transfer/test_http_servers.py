"""The actor's weights, from two trainer ranks to two real vLLM servers over HTTP.

Proven: after a sync servers say what a fresh vLLM says that loads the same weights from a Hugging
Face folder; bytes equal what the workers need. A worker that dies or stops half-way, weights that
change on the way, and another plan end in one error on every rank, with the servers paused and the
version where it was; the next sync is good. Not shown: CUDA, several nodes.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import jobs_transfer as jobs
import pytest
from cluster import Cluster, World
from jobs_transfer import Place
from tiny_models import TinyModels
from vllm_server import Servers, VllmServer, same_answer, signal_process

from megarl.mesh.layout import MeshLayout

pytestmark = [pytest.mark.dist, pytest.mark.vllm]
FAMILY = "llama"
TIMEOUT_S = 6.0


class Stage:
    """Two trainer ranks and their servers."""

    def __init__(self, world: World, running: list[VllmServer], path: str) -> None:
        self.world, self.running, self.path = world, running, path
        self.version = 0

    def sync(self) -> list[jobs.Sent]:
        """The next version arrives, and is in use."""
        self.version += 1
        sent = self.world.run(jobs.sync, self.version)
        assert [server.version for server in self.running] == [str(self.version)] * 2
        assert not any(server.is_paused for server in self.running)
        return sent

    def check_failure(self, errors: list[tuple[str, int]], *parts: str) -> None:
        """The same error on both ranks, and the version of before."""
        (text, version), other = errors
        assert (text, version) == other and version == self.version
        for part in (*parts, f"version is still {version}"):
            assert part in text, text
        assert not any(server.url in text for server in self.running)


@pytest.fixture(scope="module")
def stage(cluster: Cluster, tiny: TinyModels, servers: Servers) -> Iterator[Stage]:
    """Servers with random weights."""
    path = tiny(FAMILY)
    running = [servers.start(path) for _ in range(2)]
    with cluster.world(range(2)) as world:
        world.run(jobs.build, path, MeshLayout(tp=2))
        for server in running:
            server.wait_until_ready()
        places = [Place(server.url) for server in running]
        world.run(jobs.make_transfer, places, 1 << 14, TIMEOUT_S)
        yield Stage(world, running, path)
        world.run(jobs.close)


def test_servers_say_what_the_weights_say(stage: Stage, servers: Servers, tmp_path: Path) -> None:
    """Twice, with other weights."""
    seen, folders = [], [tmp_path / f"hf{step}" for step in range(2)]
    for folder in folders:
        stage.world.run(jobs.train)
        sent = stage.sync()
        needed = stage.world.run(jobs.needed_bytes)[0]
        assert sum(each.counted_bytes for each in sent) == needed
        assert sum(each.report.bytes_sent for each in sent) == needed
        assert all(each.report.rounds > 10 for each in sent)
        seen.append([server.answer() for server in stage.running])
        stage.world.run(jobs.export, str(folder), stage.path)
    expected = servers.reference(folders)
    assert not same_answer(*expected)
    for answers, reference in zip(seen, expected, strict=True):
        assert all(same_answer(answer, reference) for answer in answers)


def test_spoilt_weights_are_not_used(stage: Stage) -> None:
    stage.sync()
    errors = stage.world.run(jobs.spoilt_sync, stage.version + 1)
    stage.check_failure(errors, "VerificationError", "did not arrive", "server 0")
    assert all(server.is_paused for server in stage.running)
    stage.sync()


def test_another_plan_is_refused(stage: Stage) -> None:
    """Before servers are paused."""
    stage.sync()
    stage.world.run(jobs.close)
    errors = stage.world.run(jobs.sync_with_another_plan, stage.version + 1)
    stage.check_failure(errors, "PlanError", "different plans", "elements held")
    assert not any(server.is_paused for server in stage.running)
    stage.sync()


def test_vllms_own_trainer_interface(stage: Stage) -> None:
    """One server gets other weights by it, and the old ones by no way."""
    stage.sync()
    server, other = stage.running
    old = server.answer()
    stage.world.run(jobs.train)
    server.post("pause", {})
    stage.world.run(jobs.send_by_vllms_interface, server.url)
    server.post("reset_prefix_cache", {})
    server.post("resume", {})
    new = server.answer()
    assert not same_answer(old, new) and same_answer(old, other.answer())
    errors = stage.world.run(jobs.failing_sync, stage.version + 1)
    stage.check_failure(errors, "PeerError", "server 0", "init_weight_transfer_engine comes first")
    stage.sync()
    assert same_answer(new, server.answer())
    assert same_answer(new, other.answer())


@pytest.mark.parametrize(
    "how", [signal.SIGKILL, pytest.param(signal.SIGSTOP, marks=pytest.mark.slow)]
)
def test_a_worker_that_is_lost_half_way(
    how: signal.Signals, stage: Stage, servers: Servers, tmp_path: Path
) -> None:
    """Killed, it is missed at once; stopped, within the time-out; a restarted server goes on."""
    stage.sync()
    lost, other = stage.running
    halfway, go_on = tmp_path / "halfway", tmp_path / "go_on"
    errors: list[tuple[str, int]] = []

    def run() -> None:
        files = str(halfway), str(go_on)
        errors.extend(stage.world.run(jobs.held_sync, stage.version + 1, *files))

    thread = threading.Thread(target=run)
    thread.start()
    while not halfway.exists():
        assert thread.is_alive()
        time.sleep(0.01)
    signal_process(lost.pids()[-1], how)
    start = time.monotonic()
    go_on.touch()
    thread.join()
    took = time.monotonic() - start
    stage.check_failure(errors, "PeerError", "server 0", "waited for rank 2")
    assert took < (TIMEOUT_S if how == signal.SIGKILL else 2 * TIMEOUT_S)
    assert other.is_paused
    stage.running[0] = servers.restart(lost, stage.path)
    stage.sync()
    answers = [server.answer() for server in stage.running]
    assert same_answer(*answers)


@pytest.mark.slow
def test_a_worker_that_does_not_come(stage: Stage) -> None:
    """Whoever does not join in time is named; it is no matter when it wakes up later."""
    stage.sync()
    stage.world.run(jobs.close)
    pid = stage.running[1].pids()[-1]
    signal_process(pid, signal.SIGSTOP)
    errors = stage.world.run(jobs.failing_sync, stage.version + 1)
    signal_process(pid, signal.SIGCONT)
    who = f"waited {TIMEOUT_S:g} s for worker 0 of server 1 to join"
    stage.check_failure(errors, "PeerError", who)
    stage.sync()

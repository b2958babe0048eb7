"""One rank fails: every process ends within ten seconds, and the cause is the last thing it says.

Proven with four processes in two pools, under torchrun and under a plain launcher: a raise, a raise
inside vLLM's forward pass, a kill -9 while others sit in collectives, a rank at the wrong verb, a
lost store, SIGTERM from outside. Nothing of the run is left in /dev/shm. Not shown: several nodes.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from cluster import Cluster, free_port, process_env
from tiny_models import TinyModels

pytestmark = pytest.mark.dist
SCRIPT = str(Path(__file__).with_name("failing_run.py"))
RANKS = 4
LIMIT_S = 10.0
START_LIMIT_S = 90.0


@dataclass
class Started:
    """A run of four ranks."""

    folder: Path
    cluster: Cluster
    pids: list[int]
    """Ranks that were started one by one."""
    agent: subprocess.Popen[bytes] | None = None

    @property
    def statuses(self) -> list[int | None]:
        """Exit statuses of the ranks."""
        return [self.cluster.status_of(pid) for pid in self.pids]

    def rank_facts(self) -> dict[int, tuple[int, str]]:
        """rank -> (process id, run id), of the ranks that joined."""
        found = {}
        for rank in range(RANKS):
            path = self.folder / f"{rank}.ready"
            if path.exists() and (text := path.read_text()):
                pid, name = text.split()
                found[rank] = (int(pid), name)
        return found

    def wait_until_ready(self) -> dict[int, tuple[int, str]]:
        """Until all ranks joined."""
        deadline = time.monotonic() + START_LIMIT_S
        while len(found := self.rank_facts()) < RANKS and time.monotonic() < deadline:
            time.sleep(0.05)
        assert len(found) == RANKS, self.output()
        return found

    def seconds_until_gone(self, failed_at: float | None = None) -> float:
        """Until no rank lives any more, from the moment of the failure."""
        facts = self.wait_until_ready()
        moment = self.folder / "failed_at"
        deadline = time.monotonic() + START_LIMIT_S
        while failed_at is None and time.monotonic() < deadline:
            if moment.exists() and (text := moment.read_text()):
                failed_at = float(text)
            time.sleep(0.02)
        assert failed_at is not None, self.output()
        while any(alive(pid) for pid, _ in facts.values()):
            assert time.time() - failed_at < 4 * LIMIT_S, self.output()
            time.sleep(0.05)
        seconds = time.time() - failed_at
        if self.agent is not None:
            self.agent.wait(LIMIT_S)
        while None in self.statuses:
            time.sleep(0.05)
        return seconds

    def last_lines(self) -> list[str]:
        """The last line that each rank printed, of those that printed."""
        texts = [path.read_text().strip() for path in sorted(self.folder.glob("*.out"))]
        return [text.splitlines()[-1] for text in texts if text]

    def output(self) -> str:
        """All that was printed."""
        return "\n".join(path.read_text() for path in sorted(self.folder.glob("*.out")))

    def left_in_shared_memory(self) -> list[str]:
        """Names of this run."""
        names = {name for _, name in self.rank_facts().values()}
        found = Path("/dev/shm").iterdir()
        return [p.name for p in found if any(f"megarl-{name}-" in p.name for name in names)]


@pytest.fixture
def started(tmp_path: Path, cluster: Cluster) -> Iterator[Started]:
    run = Started(tmp_path, cluster, [])
    yield run
    if run.agent is not None and run.agent.poll() is None:
        run.agent.kill()
        run.agent.wait()
    for pid in {*run.pids, *(pid for pid, _ in run.rank_facts().values())}:
        if alive(pid):
            os.kill(pid, signal.SIGKILL)


def alive(pid: int) -> bool:
    """Whether a process exists and has not ended."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in ("Z", "X")


def start_plain(run: Started, scenario: str, extra: Mapping[str, str] | None = None) -> None:
    """Four processes with torchrun's variables, and nobody above them: rank 0 hosts the store."""
    common = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "WORLD_SIZE": str(RANKS),
        **(extra or {}),
    }
    for rank in range(RANKS):
        env = common | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        log = run.folder / f"{rank}.out"
        run.pids.append(run.cluster.fork_script(log, env, SCRIPT, scenario, str(run.folder)))


def start_torchrun(run: Started, scenario: str) -> None:
    """One agent with four ranks, which hosts the store."""
    with (run.folder / "agent.out").open("wb") as out:
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(RANKS)]
        command += ["--master-port", str(free_port()), SCRIPT, scenario, str(run.folder)]
        run.agent = subprocess.Popen(
            command, env=process_env(), stdout=out, stderr=subprocess.STDOUT
        )


def check_cause(run: Started, *words: str, silent: int = 0) -> None:
    """Every rank but `silent` ends with the cause, a status that is not 0, and a clean house."""
    lines = run.last_lines()
    assert len(lines) == RANKS - silent
    for line in lines:
        assert line.startswith("megarl: ") and all(word in line for word in words), run.output()
    assert all(status != 0 for status in run.statuses)
    assert run.left_in_shared_memory() == []


def test_a_run_that_ends_in_order(started: Started) -> None:
    start_plain(started, "in-order")
    started.seconds_until_gone()
    assert started.statuses == [0] * RANKS
    assert started.left_in_shared_memory() == []


def test_a_raise_on_one_rank(started: Started) -> None:
    start_plain(started, "raise")
    assert started.seconds_until_gone() < LIMIT_S
    check_cause(started, "rank 2 failed at step 4, verb 2 (second)", "ValueError: sample 17 is bad")


@pytest.mark.slow
def test_a_raise_while_another_rank_writes_a_model(started: Started) -> None:
    """What the writer had written goes, though it never saw an exception."""
    start_plain(started, "raise-while-writing")
    assert started.seconds_until_gone() < LIMIT_S
    check_cause(started, "rank 2 failed at step 4, verb 2 (second)", "ValueError: sample 17 is bad")
    assert (started.folder / "template").is_dir()
    assert not list(started.folder.glob("model*"))


@pytest.mark.slow
def test_a_raise_under_torchrun(started: Started) -> None:
    start_torchrun(started, "raise")
    assert started.seconds_until_gone() < LIMIT_S
    said = [line for line in started.output().splitlines() if line.startswith("megarl: ")]
    assert said and all("rank 2 failed at step 4, verb 2 (second)" in line for line in said)
    assert started.agent is not None and started.agent.returncode != 0
    assert started.left_in_shared_memory() == []


def test_a_config_error_leaves_with_2(started: Started) -> None:
    """Every rank finds it: one message, no traceback, exit status 2."""
    start_plain(started, "config-error")
    assert started.seconds_until_gone() < LIMIT_S
    check_cause(started, "data.train_path is empty")
    assert started.statuses == [2] * RANKS
    assert "Traceback" not in started.output()


def test_a_kill_9(started: Started) -> None:
    start_plain(started, "kill")
    assert started.seconds_until_gone() < LIMIT_S
    check_cause(started, "rank 1 failed at its process", "gone without a word", silent=1)


def test_an_exit_on_the_rank_that_hosts_the_store(started: Started) -> None:
    """A user's code that calls os._exit: its status stays its own, its shared memory goes."""
    start_plain(started, "exit")
    assert started.seconds_until_gone() < LIMIT_S
    lines = started.last_lines()
    assert len(lines) == RANKS - 1
    assert all("the store is gone" in line or "rank 0 failed" in line for line in lines)
    assert started.statuses[0] == 3 and all(status == 1 for status in started.statuses[1:])
    assert started.left_in_shared_memory() == []
    assert not (Path("/dev/shm") / (started.folder / "block").read_text()).exists()


def test_a_rank_at_the_wrong_verb(started: Started) -> None:
    """Both verbs are named, though no rank ever reaches an exchange; the stall limit is 2 s."""
    start_plain(started, "wrong-verb")
    assert started.seconds_until_gone() < LIMIT_S
    check_cause(started, "verb 3 (update_critic)", "verb 3 (update_actor)")


@pytest.mark.slow
def test_a_rank_that_keeps_its_peers_waiting_is_named(started: Started) -> None:
    """Once, by the first of those that wait; the stall limit is 2 s."""
    start_plain(started, "busy")
    facts = started.wait_until_ready()
    time.sleep(5.0)
    said = [line for line in started.output().splitlines() if "still busy" in line]
    assert len(said) == 1, started.output()
    assert said[0].startswith("megarl: rank 0 has waited ")
    assert "at verb 2 (second) for rank 3, which is still busy in it" in said[0]
    os.kill(facts[3][0], signal.SIGTERM)
    assert started.seconds_until_gone(time.time()) < LIMIT_S


def test_a_lost_store(started: Started) -> None:
    """Rank 0 hosts the store; with it gone, the others end by themselves."""
    start_plain(started, "wait")
    facts = started.wait_until_ready()
    time.sleep(1.0)
    os.kill(facts[0][0], signal.SIGKILL)
    assert started.seconds_until_gone(time.time()) < LIMIT_S
    lines = started.last_lines()
    assert len(lines) == RANKS - 1
    assert all("the store is gone" in line or "rank 0 failed" in line for line in lines)
    assert started.left_in_shared_memory() == []


@pytest.mark.slow
def test_a_lost_torchrun_agent(started: Started) -> None:
    """The agent hosts the store; killed, it leaves no orphan ranks behind."""
    start_torchrun(started, "wait")
    started.wait_until_ready()
    time.sleep(1.0)
    assert started.agent is not None
    started.agent.kill()
    assert started.seconds_until_gone(time.time()) < LIMIT_S
    assert "the store is gone" in started.output()
    assert started.left_in_shared_memory() == []


@pytest.mark.slow
def test_sigterm_from_outside(started: Started) -> None:
    """A rank that is told to end in a collective does, and takes the others along."""
    start_plain(started, "wait")
    facts = started.wait_until_ready()
    time.sleep(1.0)
    os.kill(facts[2][0], signal.SIGTERM)
    assert started.seconds_until_gone(time.time()) < LIMIT_S
    check_cause(started, "rank 2 failed at a signal", "SIGTERM")


@pytest.mark.slow
def test_an_interrupt_is_no_crash(started: Started) -> None:
    """Ctrl-C reaches every rank: one line each, no traceback, the shell's status for it."""
    start_plain(started, "sleep")
    for pid, _ in started.wait_until_ready().values():
        os.kill(pid, signal.SIGINT)
    assert started.seconds_until_gone(time.time()) < LIMIT_S
    check_cause(started, "failed at a signal: interrupted")
    assert set(started.statuses) == {130}
    assert "Traceback" not in started.output()


@pytest.mark.vllm
def test_a_raise_inside_vllm(started: Started, tiny: TinyModels) -> None:
    start_plain(started, "vllm", {"TEST_MODEL": tiny("llama")})
    assert started.seconds_until_gone() < LIMIT_S
    check_cause(
        started, "rank 3 failed at step 4, verb 3 (generate)", "RuntimeError: the engine broke"
    )

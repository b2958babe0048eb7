"""Starts a run's ranks on this machine, where no launcher did, and ends them together.

The ranks see torchrun's variables, so they run the same code as under torchrun or srun. The parent
only watches: it never joins a process group, and its exit status is the worst of its ranks.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING, Any

from megarl.runtime.requeue import REQUEUE_STATUS, hold_signals, let_signals_through

if TYPE_CHECKING:
    from megarl.runtime.bringup import Launch

CHECKED = "MEGARL_CONFIG_CHECKED"
"""Set for ranks whose parent has read checkpoints, data and rewards already."""

STATUSES = frozenset({0, 1, 2, REQUEUE_STATUS, 128 + signal.SIGINT, 128 + signal.SIGTERM})
"""Exit statuses of ranks that have said why themselves."""

PEER_GRACE_S = 6.0
"""After the first rank failed, the others have this long to say why and leave by themselves."""
TERM_GRACE_S = 2.0
"""Between SIGTERM and SIGKILL."""
_POLL_S = 0.05
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


def is_checked() -> bool:
    """Whether a parent has validated the files for this rank."""
    return os.environ.get(CHECKED) == "1"


def speaks(launch: Launch) -> bool:
    """Whether this rank reports what all ranks of its node find alike."""
    return launch.rank == 0 or launch.local_rank == 0


def die_with_parent() -> None:
    """End this process when its parent is gone, however that ended; on Linux only."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def adopt_orphans() -> None:
    """Become the parent of every process below that loses its own; on Linux only."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def limit_threads(launch: Launch) -> None:
    """Threads of this rank: OMP_NUM_THREADS, SLURM's cores per task, or a share of the node's."""
    import torch

    share = num_cores() // launch.local_world_size
    given = os.environ.get("OMP_NUM_THREADS") or os.environ.get("SLURM_CPUS_PER_TASK")
    threads = max(1, int(given) if given else share)
    os.environ["OMP_NUM_THREADS"] = str(threads)
    # The variable alone comes too late where torch is loaded already.
    torch.set_num_threads(threads)


def rank_environments(env: Mapping[str, str], num_ranks: int, port: int) -> list[dict[str, str]]:
    """The environment of every rank: torchrun's variables on top of `env`."""
    # C++ warnings and stack lines of torch would stand between the user and the cause of a failure.
    common = (
        {"TORCH_CPP_LOG_LEVEL": "ERROR"}
        | dict(env)
        | {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "WORLD_SIZE": str(num_ranks),
            "LOCAL_WORLD_SIZE": str(num_ranks),
            CHECKED: "1",
        }
    )
    common.setdefault("OMP_NUM_THREADS", str(max(1, num_cores() // num_ranks)))
    return [common | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(num_ranks)]


def spawn(
    arguments: Sequence[str],
    num_ranks: int,
    say: Callable[[str], None],
    *,
    module: str,
    saves: bool = False,
) -> int:
    """Run `python -m module arguments...` as `num_ranks` ranks; returns the worst exit status.

    When one fails the others get `PEER_GRACE_S` to end by themselves; then they are ended. SIGINT
    and SIGTERM end all; with `saves` the first SIGTERM is passed on to the ranks, which save and
    leave, as SIGUSR1 always is. `say` gets one line for a rank that was killed and could not speak
    itself.
    """
    from megarl.runtime.bringup import free_port, read_launch
    from megarl.runtime.watch import sweep_shared_memory

    environments = rank_environments(os.environ, num_ranks, free_port())
    command = [sys.executable, "-m", module, *arguments]
    ranks: list[_Rank] = []
    # A terminated parent must take its ranks along: its SIGTERM becomes an exception here.
    before = signal.signal(signal.SIGTERM, _terminated)
    try:
        # Ranks inherit this, and answer the signal when they have started.
        hold_signals()
        for env in environments:
            ranks.append(_Rank(len(ranks), subprocess.Popen(command, env=env)))
        _pass_on(signal.SIGUSR1, ranks, afterwards=None)
        let_signals_through()
        if saves:
            _pass_on(signal.SIGTERM, ranks, afterwards=_terminated)
        _watch(ranks)
    except KeyboardInterrupt:
        _end(ranks)
        return 128 + signal.SIGINT
    except _Terminated:
        return 128 + signal.SIGTERM
    finally:
        _end(ranks)
        sweep_shared_memory(read_launch(environments[0]).run_id)
        signal.signal(signal.SIGTERM, before)
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        let_signals_through()
        signal.signal(signal.SIGUSR1, signal.SIG_DFL)
    for rank in ranks:
        if rank.killed_by is not None:
            say(f"rank {rank.number} (process {rank.process.pid}) was killed by {rank.killed_by}")
        elif rank.status not in STATUSES:
            say(
                f"rank {rank.number} (process {rank.process.pid}) left without a word, with exit "
                f"status {rank.status}"
            )
    return max(rank.status for rank in ranks)


@dataclass
class _Rank:
    number: int
    process: subprocess.Popen[bytes]
    ended_here: bool = False
    """Ended by this parent: its status says nothing about the run."""

    @property
    def killed_by(self) -> str | None:
        """Name of the signal that ended it, unless the parent sent it."""
        code = self.process.returncode
        if self.ended_here or code is None or code >= 0:
            return None
        return signal.Signals(-code).name

    @property
    def status(self) -> int:
        """Its exit status as a shell counts it; 0 where the parent ended it."""
        code = self.process.returncode or 0
        if self.ended_here:
            return 0
        return 128 - code if code < 0 else code


def _pass_on(number: int, ranks: Sequence[_Rank], afterwards: Any) -> None:
    """Send the signal on to the ranks; `afterwards`, where given, handles one that comes later."""
    from megarl.runtime.watch import SAME_REQUEST_S

    first: list[float] = []

    def handle(number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if afterwards is not None and first and now - first[0] >= SAME_REQUEST_S:
            afterwards(number, frame)
        first.append(now)
        for rank in ranks:
            if rank.process.poll() is None:
                rank.process.send_signal(number)

    signal.signal(number, handle)


class _Terminated(Exception):
    pass


def _terminated(number: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise _Terminated


def _watch(ranks: Sequence[_Rank]) -> None:
    """Until all have ended, or the grace after the first failure is over."""
    deadline = None
    while True:
        codes = [rank.process.poll() for rank in ranks]
        if None not in codes:
            return
        if deadline is None and any(codes):
            deadline = time.monotonic() + PEER_GRACE_S
        if deadline is not None and time.monotonic() > deadline:
            return
        time.sleep(_POLL_S)


def _end(ranks: Sequence[_Rank]) -> None:
    """SIGTERM, then SIGKILL, to whatever still runs."""
    running = [rank for rank in ranks if rank.process.poll() is None]
    for rank in running:
        rank.ended_here = True
        rank.process.terminate()
    deadline = time.monotonic() + TERM_GRACE_S
    for rank in running:
        try:
            rank.process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            rank.process.kill()
            rank.process.wait()

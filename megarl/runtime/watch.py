"""Failure watch: when one rank fails, every rank ends within seconds and says why.

A rank that fails writes its cause to the store. A thread on every rank polls the store, and the
processes of its own node, and ends its process even when the main thread is blocked in a collective
or in vLLM. Shared memory of the run, and folders that are not whole, are removed on the way out.
"""

from __future__ import annotations

import json
import logging
import os
import select
import signal
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch.distributed as dist

from megarl.errors import MegaRLError, PeerError
from megarl.runtime import unfinished
from megarl.runtime.requeue import let_signals_through

_LOG = logging.getLogger("megarl.watch")
POLL_S = 0.5
GRACE_S = 3.0
"""How long a rank waits for a better cause than its own, and for its peers to read it."""
SAME_REQUEST_S = 5.0
"""Signals so soon after the first are the same request: a batch system sends one to every process,
and parents hand theirs on."""
FAILURE_KEY = "failure"
SHARED_MEMORY = Path("/dev/shm")


class Watch:
    """Watches this rank's peers; `guard` it around everything the rank does."""

    def __init__(
        self,
        store: dist.Store,
        rank: int,
        world_size: int,
        pids: dict[int, int],
        run_name: str,
        stall_timeout_s: float,
        *,
        saves: bool = False,
    ) -> None:
        """store: a connection of the watch's own; pids: rank -> process, of this node's ranks.

        saves: whether a first SIGTERM asks to save and leave, as SIGUSR1 does, instead of ending
        the run at once.
        """
        self._saves, self._parent = saves, os.getppid()
        self._asked_at: float | None = None
        self._store, self.rank, self._world = store, rank, world_size
        self._pids, self._run_name = pids, run_name
        self._stall_timeout_s = stall_timeout_s
        self._verbs: list[tuple[int, str]] = [(0, "start")]
        self._step: int | None = None
        self._since = time.monotonic()
        self._waits = False
        self._published: tuple[int, bool] | None = None
        self._done = threading.Event()
        self._ending = threading.Lock()
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_write, False)
        self._warned = False
        self._thread = threading.Thread(target=self._loop, name="megarl-watch", daemon=True)

    def start(self) -> None:
        """Begin watching; signals wake the watch even when the main thread is blocked."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGUSR1):
                signal.signal(number, lambda *_: None)
            signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
            let_signals_through()
        self._thread.start()

    def announce(self, sequence: int, verb: str, step: int | None) -> None:
        """The main thread begins verb number `sequence`, in training step `step` if in any."""
        _LOG.debug("verb %d: %s, step %s", sequence, verb, "-" if step is None else step)
        self._step = step
        self._verbs = [*self._verbs[-15:], (sequence, verb)]
        self._since = time.monotonic()
        self._warned = False

    def waiting(self, waits: bool) -> None:
        """The main thread begins or ends an exchange with all peers."""
        self._waits = waits
        self._since = time.monotonic()

    def stop(self) -> None:
        """End watching, at the orderly end of a run."""
        self._done.set()
        if threading.current_thread() is threading.main_thread():
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        self._thread.join(timeout=2 * POLL_S + GRACE_S)

    def fail(self, error: BaseException) -> None:
        """Report this rank's error, or the one that caused it elsewhere, and end the process."""
        _LOG.error("failed", exc_info=error)
        if isinstance(error, KeyboardInterrupt):
            self._end(self._record(self.rank, "a signal", "interrupted", 128 + signal.SIGINT))
        if not isinstance(error, MegaRLError):
            traceback.print_exception(error)
        if _is_lost_peer(error):
            self._await_other_cause()
        sequence, verb = self._verbs[-1]
        what = f"{error}" if isinstance(error, MegaRLError) else f"{type(error).__name__}: {error}"
        code = error.exit_code if isinstance(error, MegaRLError) else 1
        step = "" if self._step is None else f"step {self._step}, "
        self._end(self._record(self.rank, f"{step}verb {sequence} ({verb})", what, code))

    def _record(self, rank: int, where: str, what: str, code: int) -> dict[str, Any]:
        """Write a failure unless there is one; returns the one that counts."""
        mine = {"rank": rank, "where": where, "what": what, "code": code}
        try:
            first = self._store.compare_set(FAILURE_KEY, "", json.dumps(mine))
            return dict(json.loads(first))
        except (RuntimeError, ValueError):
            return mine

    def _await_other_cause(self) -> None:
        """Wait for the cause behind a lost connection; `_loop` ends the process when it comes."""
        time.sleep(GRACE_S)

    def _loop(self) -> None:
        while not self._done.is_set():
            woken, _, _ = select.select([self._wake_read], [], [], POLL_S)
            signals = os.read(self._wake_read, 64) if woken else b""
            try:
                self._look(terminated=self._ends_at_once(signals))
            except (RuntimeError, dist.DistError) as error:
                time.sleep(1.0)
                if not self._done.is_set():
                    what = f"the store is gone, so node 0 has ended ({error})"
                    self._end({"rank": 0, "where": "the store", "what": what, "code": 1})

    def asked_to_leave(self) -> bool:
        """Whether a signal asked this rank to save and leave."""
        return self._asked_at is not None

    def _ends_at_once(self, signals: bytes) -> bool:
        """Whether SIGTERM came and is no request to save first."""
        if not {signal.SIGUSR1, signal.SIGTERM} & set(signals):
            return False
        new = self._asked_at is None or time.monotonic() - self._asked_at < SAME_REQUEST_S
        saves = self._saves and new and os.getppid() == self._parent
        if signal.SIGTERM in signals and not saves:
            return True
        if self._asked_at is None:
            _LOG.info("asked by a signal to save and leave")
            self._asked_at = time.monotonic()
        return False

    def _look(self, terminated: bool) -> None:
        if self._store.check([FAILURE_KEY]):
            self._end(json.loads(self._store.get(FAILURE_KEY)))
        for rank, pid in self._pids.items():
            if rank != self.rank and not _alive(pid) and not self._left(rank):
                what = f"the process {pid} is gone without a word: killed, or out of memory"
                self._end(self._record(rank, "its process", what, 1))
        if terminated:
            time.sleep(POLL_S)  # a peer's cause may be on its way
            if self._store.check([FAILURE_KEY]):
                self._end(json.loads(self._store.get(FAILURE_KEY)))
            self._end(self._record(self.rank, "a signal", "SIGTERM from outside", 143))
        self._publish()
        if time.monotonic() - self._since > self._stall_timeout_s:
            self._compare_verbs()

    def _left(self, rank: int) -> bool:
        """Whether a rank ended in order."""
        return bool(self._store.check([f"left/{rank}"]))

    def leave(self) -> None:
        """Say that this rank ends in order."""
        self._store.set(f"left/{self.rank}", "1")

    def _publish(self) -> None:
        now = self._verbs[-1][0], self._waits
        if now != self._published:
            self._published = now
            self._store.set(f"verbs/{self.rank}", json.dumps([self._waits, self._verbs]))

    def _compare_verbs(self) -> None:
        """This rank has waited long: name a peer that is at another verb, or that lags behind."""
        mine, first_waiting, busy = dict(self._verbs), self.rank, []
        for rank in range(self._world):
            if rank == self.rank or not self._store.check([f"verbs/{rank}"]):
                continue
            waits, verbs = json.loads(self._store.get(f"verbs/{rank}"))
            theirs = dict(verbs)
            if max(theirs) == max(mine):
                first_waiting = min(first_waiting, rank) if waits else first_waiting
                busy += [] if waits else [rank]
            for sequence in sorted(set(mine) & set(theirs)):
                if mine[sequence] != theirs[sequence]:
                    what = (
                        f"rank {rank} is at verb {sequence} ({theirs[sequence]}), rank {self.rank} "
                        f"at verb {sequence} ({mine[sequence]}): the ranks took different ways"
                    )
                    self._end(self._record(rank, f"verb {sequence}", what, 1))
            if max(theirs) < max(mine):
                self._warn(f"rank {rank}, still at verb {max(theirs)} ({theirs[max(theirs)]})")
        if self._waits and busy and self.rank == first_waiting:
            self._warn(f"rank {', '.join(map(str, busy[:8]))}, which is still busy in it")

    def _warn(self, laggard: str) -> None:
        """Say, once a verb, whom this rank waits for."""
        if self._warned:
            return
        self._warned = True
        sequence, verb = self._verbs[-1]
        self._say(
            f"rank {self.rank} has waited {time.monotonic() - self._since:.0f} s at verb "
            f"{sequence} ({verb}) for {laggard}"
        )

    def _end(self, failure: dict[str, Any]) -> None:
        """Say the cause, tidy up, leave without waiting for anything that is blocked."""
        with self._ending:
            try:
                self._store.add("heard", 1)
                deadline = time.monotonic() + GRACE_S
                # Whoever hosts the store, or leaves first, must not take the cause away.
                while time.monotonic() < deadline and self._store.add("heard", 0) < self._world:
                    time.sleep(0.1)
            except (RuntimeError, dist.DistError):
                pass  # the store is gone: there is nobody left to wait for
            sweep_shared_memory(self._run_name)
            unfinished.remove_all()
            self._say(f"rank {failure['rank']} failed at {failure['where']}: {failure['what']}")
            os._exit(int(failure["code"]))

    def _say(self, text: str) -> None:
        _LOG.warning(text)
        sys.stdout.flush()
        sys.stderr.write(f"megarl: {text}\n")
        sys.stderr.flush()


def sweep_shared_memory(run_id: str, *, all_attempts: bool = False) -> list[str]:
    """Unlink what a start of this id left in /dev/shm, or earlier attempts too; the names."""
    name = run_id.rpartition("-")[0] if all_attempts else run_id
    found = sorted(SHARED_MEMORY.glob(f"*megarl-{name}-*")) if SHARED_MEMORY.is_dir() else []
    for path in found:
        path.unlink(missing_ok=True)
    return [path.name for path in found]


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in ("Z", "X")


LOST_PEER_WORDS: Sequence[str] = (
    "connection closed by peer", "connection reset", "broken pipe", "timed out", "gloo", "nccl",
    "connection refused", "read error",
)  # fmt: skip


def _is_lost_peer(error: BaseException | None) -> bool:
    """Whether an error, or what it was raised from, is what is said when somebody else is gone."""
    while error is not None:
        text = str(error).lower()
        if isinstance(error, PeerError) or (
            isinstance(error, dist.DistError | RuntimeError)
            and any(word in text for word in LOST_PEER_WORDS)
        ):
            return True
        error = error.__cause__
    return False

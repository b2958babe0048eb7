"""Actor -> vLLM servers: who is there, their weights, and the proof of arrival.

Before each sync the servers are asked whether they are well: those that left are left out, those
that came or were restarted get the weights like the others, and none is given a sample before it
has them. Where a server is lost on the way, the sync begins again with those that are left.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from megarl.errors import PeerError, RunError
from megarl.layout import ModelShape, ReplicaLayout
from megarl.mesh.control import Control
from megarl.mesh.universe import Universe
from megarl.reshard.executor import SyncReport
from megarl.roles.actor import Actor
from megarl.roles.canary import CANARY_LIMIT, Canary, CanaryText
from megarl.roles.rollout import RolloutRole
from megarl.rollout.servers.address import ServerAddress
from megarl.rollout.servers.health import those_that_answer
from megarl.transfer.servers import HttpServer, PauseMode
from megarl.transfer.trainer import WeightTransfer

_LOG = logging.getLogger("megarl.weights")
ATTEMPTS = 3
"""Of one sync, before its failure is the run's."""
LOOK_S = 1.0
"""Between two looks for a server, where there is none."""


@dataclass(frozen=True, slots=True)
class ServerSyncSettings:
    """How weights travel to servers."""

    wire_dtype: torch.dtype
    buffer_bytes: int
    """Of all send and receive buffers of a rank together."""
    replica: ReplicaLayout
    """How each server splits the model."""
    timeout_s: float
    """For the answer of a server to any step of a sync."""
    patience_s: float
    """How long there may be no server at all."""
    overlap: bool = True
    pause_mode: PauseMode = "wait"
    max_staleness: int = 0
    """Syncs that may lie between a sample's weights and the trainer's."""
    canary: CanaryText | None = None
    canary_limit: float = CANARY_LIMIT[torch.float32]


class ServerSync:
    """What `WeightSync` is for engines of this job; `run` after every update."""

    def __init__(
        self,
        universe: Universe,
        control: Control,
        shape: ModelShape,
        actor: Actor,
        rollout: RolloutRole,
        settings: ServerSyncSettings,
    ) -> None:
        """The rollout's rank has a `ServerEngine`; nothing is sent before the first `run`."""
        self._universe, self._control, self._shape = universe, control, shape
        self._actor, self._rollout, self._settings = actor, rollout, settings
        self._transfer: WeightTransfer | None = None
        self._members: tuple[ServerAddress, ...] = ()
        """Those that the transfer knows; on the rollout's rank."""
        # No other trainer gives its weights these names.
        self._label, self._names = uuid.uuid4().hex[:8], dict[str, int]()
        self.version = 0
        """The actor's weight version that the servers have; 0 before the first sync."""
        self.canary = Canary(control, actor, rollout, settings.canary_limit)

    def run(self) -> SyncReport:
        """Bring the actor's weights to every server that is well, and prove that they arrived.

        Raises, on every rank: RunError where no server answers within patience_s; what
        WeightTransfer.sync does, where three attempts have failed.
        """
        version = self._actor.weight_version
        name = f"{self._label}.{version}"
        if self._rollout.here and self._settings.max_staleness:
            self._rollout.servers.weights_come(version, name)
        report = self._sync(version, name)
        # With partial rollouts a sample may be older than its trainer wants it: that is counted.
        older = self._names if self._settings.max_staleness else {}
        self._names = {**older, name: version}
        if self._rollout.here:
            self._rollout.servers.weights_are(version, self._members, self._names)
        self.version = version
        if self._settings.canary is not None:
            self.canary.check(self._settings.canary, version)
        return report

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps, so that syncs after it report what they would have."""
        return {"canary": self.canary.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on: the next `run` brings the restored weights."""
        self.canary.load_state_dict(state["canary"])

    def text(self) -> str:
        """What is known of the way before the first sync, for people."""
        return f"to vLLM servers, each {self._settings.replica.describe()}; no plan before a sync\n"

    def _sync(self, version: int, name: str) -> SyncReport:
        for attempt in range(1, ATTEMPTS + 1):
            transfer = self._meet()
            try:
                return transfer.sync(version, name)
            except PeerError as error:  # the same on all ranks
                if attempt == ATTEMPTS:
                    raise
                if self._rollout.here:
                    _LOG.warning("%s; it begins again (%d of %d)", error, attempt, ATTEMPTS)
        raise AssertionError("the last attempt returns or raises")

    def _meet(self) -> WeightTransfer:
        """The transfer, to the servers that are well now."""
        found, problem = tuple[ServerAddress, ...](), None
        if self._rollout.here:
            try:
                found = self._well()
            except RunError as error:
                problem = str(error)
        changed = found != self._members
        problem, changed = self._control.gather((problem, changed))[self._rollout.lead_of(0)]
        if problem is not None:
            raise RunError(problem)
        settings = self._settings
        servers = [HttpServer(a, settings.replica, pause_mode=settings.pause_mode) for a in found]
        if self._transfer is None:
            self._transfer = WeightTransfer(
                self._universe,
                self._shape,
                self._actor,
                servers,
                wire_dtype=settings.wire_dtype,
                buffer_bytes=settings.buffer_bytes,
                overlap=settings.overlap,
                timeout_s=settings.timeout_s,
            )
        elif changed:
            self._transfer.set_servers(servers)
        self._members = found
        return self._transfer

    def _well(self) -> tuple[ServerAddress, ...]:
        """The servers that answer; waits for one, where there is none."""
        source = self._rollout.servers.source
        deadline = time.monotonic() + self._settings.patience_s
        while not (found := tuple(those_that_answer(known := source.known()))):
            if time.monotonic() > deadline:
                raise RunError(
                    f"rollout: of {len(known)} servers none has answered for "
                    f"{self._settings.patience_s:g} s (rollout.client.patience_s)"
                )
            time.sleep(LOOK_S)
        self._tell_changes([one.name for one in found], _LOG.info)
        return found

    def _tell_changes(self, now: list[str], say: Callable[..., None]) -> None:
        before = [one.name for one in self._members]
        gone = [name for name in before if name not in now]
        came = [name for name in now if name not in before]
        if before and gone:
            say("rollout: %s gone, %d left", ", ".join(gone), len(now))
        if before and came:
            say("rollout: %s new", ", ".join(came))

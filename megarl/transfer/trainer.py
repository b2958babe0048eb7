"""The trainer's side: `WeightTransfer` brings the actor's weights to vLLM servers.

A sync is: pause the servers, move and verify, close the update, forget cached prefixes, resume.
Trainer rank 0 talks to the servers; all ranks move weights. After each step all ranks agree on how
it went: where one failed, all raise what all had to say, the servers stay paused, the version stays
what it was, and the next sync begins with a new session.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Protocol, TypeVar

import torch
import torch.distributed as dist

from megarl.errors import ConfigError, MegaRLError, PeerError, RunError
from megarl.layout import ModelShape, ReplicaLayout
from megarl.mesh.layout import MeshLayout
from megarl.mesh.universe import Pool, Universe
from megarl.models.engine import MegatronEngine, layernorm_names
from megarl.reshard.executor import SyncReport
from megarl.transfer.calls import Calls
from megarl.transfer.rendezvous import open_store
from megarl.transfer.servers import Server
from megarl.transfer.session import Session
from megarl.transfer.spec import ServerPlace, TransferSpec

GRACE_S = 5.0
"""How long servers may take to say why, once the trainer's own part has failed."""
T = TypeVar("T")


class Source(Protocol):
    """The role whose weights are sent, as `megarl.roles.actor.Actor`."""

    pool: Pool
    layout: MeshLayout

    @property
    def here(self) -> bool:
        """Whether this rank holds a part of the role."""
        ...

    @property
    def engine(self) -> MegatronEngine:
        """Its model; only where `here`."""
        ...


class WeightTransfer:
    """The actor's weights, to servers outside the universe; every rank of the universe has one."""

    def __init__(
        self,
        universe: Universe,
        shape: ModelShape,
        actor: Source,
        servers: Sequence[Server],
        *,
        wire_dtype: torch.dtype,
        buffer_bytes: int = 512 << 20,
        overlap: bool = True,
        timeout_s: float = 300.0,
        host: str | None = None,
    ) -> None:
        """servers: those of rank 0 count; the other ranks give the same or none.

        buffer_bytes: of each rank, all buffers together. timeout_s: for an answer of a server (a
        whole update is one), and for any one message between ranks; less than half of the
        universe's own, so that it speaks first.
        host: address of rank 0 as servers see it; without it, the one that the launcher gave.
        Raises ConfigError without servers, and where two have the same name.
        """
        if 2 * timeout_s > universe.timeout.total_seconds():
            raise ConfigError(
                f"weight transfer: timeout_s {timeout_s:g} is more than half of the universe's "
                f"{universe.timeout.total_seconds():g} s, which would end the wait for a server's "
                "two answers first: lower it, or raise run.timeout_s"
            )
        self._universe, self._actor = universe, actor
        self._timeout_s, self._host = timeout_s, host or universe.launch.master_addr
        self._spec = TransferSpec(
            shape=shape,
            actor=actor.layout,
            actor_ranks=actor.pool.ranks,
            layernorm=layernorm_names(),
            trainers=universe.size,
            servers=(),
            wire=str(wire_dtype).removeprefix("torch."),
            buffer_bytes=buffer_bytes,
            overlap=overlap,
            timeout_s=timeout_s,
        )
        self._store: dist.TCPStore | None = None
        self._session: Session | None = None
        self._servers: tuple[Server, ...] = ()
        self._attempt = 0
        self.version = 0
        """The weight version that all servers have; 0 before the first sync."""
        self.set_servers(servers)

    def set_servers(self, servers: Sequence[Server]) -> None:
        """The servers that the next sync goes to; all ranks of the universe call it together.

        Those of rank 0 count. Raises ConfigError without servers, and where two have one name.
        """
        self._end_session()
        self._servers = tuple(servers) if self._universe.rank == 0 else ()
        mine = tuple(ServerPlace(server.name, server.replica) for server in self._servers)
        places = self._universe.all_gather(mine)[0]
        for place in places:
            if place.replica != ReplicaLayout(*place.replica.sizes):
                raise ConfigError(
                    f"weight transfer: {place.name}: a server's ranks are neighbours: leave the "
                    "strides of its ReplicaLayout out"
                )
        names = [place.name for place in places]
        if not names or len(set(names)) < len(names):
            raise ConfigError(
                f"weight transfer: servers with names of their own are needed: {names}"
            )
        self._spec = replace(self._spec, servers=places)

    def connect(self) -> None:
        """Make the group of trainer ranks and workers, and check that all plan alike.

        All ranks of the universe call it together; servers go on generating meanwhile. `sync` does
        it where it has not been done. Raises ConfigError, PlanError or PeerError on every rank.
        """
        self._end_session()
        self._together("connect", self._check_servers)
        self._open_store()
        self._attempt += 1
        self._session = self._together("connect", self._make_session)

    def sync(self, version: int, name: str | None = None) -> SyncReport:
        """Bring the actor's weights to every server; all ranks of the universe call it together.

        name: how the servers call these weights; None: the version's number.
        Returns what this rank moved. Raises PlanError, VerificationError or PeerError on every
        rank, with server and cause: then no server that took part generates until a sync has
        succeeded (but for a failure to resume, when all have the new weights). Restart a server
        that died, and call it again.
        """
        if self._session is None:
            self.connect()
        timeout = self._timeout_s
        self._on_servers("pause", lambda server: server.pause(timeout))
        report = self._together("update", self._update)
        self._on_servers("finish", lambda server: server.finish(name or str(version), timeout))
        self._on_servers("forget", lambda server: server.forget(timeout))
        self._on_servers("resume", lambda server: server.resume(timeout))
        self.version = version
        return report

    def close(self) -> None:
        """Have the servers leave; all ranks call it together."""
        if self._session is not None:
            self._on_servers("release", lambda server: server.release(self._timeout_s))
            self._end_session()
        self._store = None

    def _make_session(self) -> Session:
        store = self._store
        assert store is not None

        def initialize(index: int, server: Server) -> None:
            info = {
                "spec": self._spec.to_json(),
                "server": index,
                "host": self._host,
                "port": store.port,
                "attempt": self._attempt,
            }
            # It answers when all have joined, for which each of them waits as long as this rank,
            # and says who is missing.
            server.initialize(info, 2 * self._timeout_s)

        calls = Calls(self._servers, initialize)
        return self._beside(
            calls,
            lambda: Session(self._spec, store, self._attempt, self._universe.rank, calls.failures),
        )

    def _update(self) -> SyncReport:
        session = self._session
        assert session is not None
        live = self._actor.engine.parameters() if self._actor.here else {}

        def update(_: int, server: Server) -> None:
            server.update({"attempt": session.attempt}, self._timeout_s)

        calls = Calls(self._servers, update, on_failure=session.close)
        return self._beside(calls, lambda: session.move(live, {}))

    def _beside(self, calls: Calls, work: Callable[[], T]) -> T:
        """This rank's own part, while the servers do theirs."""
        try:
            done = work()
        except PeerError as error:  # other errors are known on all sides
            servers_first = bool(calls.failures())
            calls.wait(GRACE_S)
            said = [text for text in (str(error), calls.failures()) if text]
            raise PeerError("; ".join(reversed(said) if servers_first else said)) from error
        calls.wait(self._timeout_s)
        if calls.failures():
            raise PeerError(calls.failures())
        return done

    def _on_servers(self, step: str, call: Callable[[Server], None]) -> None:
        self._together(step, lambda: self._beside(Calls(self._servers, lambda _, s: call(s)), int))

    def _check_servers(self) -> None:
        for server in self._servers:
            server.check(self._timeout_s)

    def _open_store(self) -> None:
        """Rank 0 hosts it, and the others learn its port."""
        if self._store is not None:
            return
        hosts, host, timeout = self._universe.rank == 0, self._host, self._timeout_s

        def serve() -> int:
            self._store = open_store(host, 0, timeout, hosts=True) if hosts else None
            return self._store.port if self._store else 0

        def reach() -> dist.TCPStore:
            return self._store or open_store(host, port, timeout, hosts=False)

        port = self._universe.all_gather(self._together("connect", serve))[0]
        self._store = self._together("connect", reach)

    def _together(self, step: str, work: Callable[[], T]) -> T:
        """Do this rank's part of a step; where any rank failed, all raise what all had to say."""
        problem: Exception | None = None
        done: T | None = None
        try:
            done = work()
        except Exception as error:
            problem = error
            self._end_session()  # so that nobody waits for this rank
        mine = (type(problem), str(problem)) if problem else None
        found = [each for each in self._universe.all_gather(mine) if each is not None]
        if found:
            self._end_session()
            raise self._combined(step, found) from problem
        return done  # type: ignore[return-value]

    def _combined(self, step: str, found: Sequence[tuple[Any, str]]) -> MegaRLError:
        """The most telling kind of error, and every different text once."""
        kinds = [kind for kind, _ in found if kind is not PeerError] or [PeerError]
        kind: type[MegaRLError] = kinds[0] if issubclass(kinds[0], MegaRLError) else RunError
        causes = "; ".join(dict.fromkeys(text for _, text in found))
        state = "servers that were paused stay so until a sync succeeds"
        if step == "resume":  # the only step after which some may generate
            state = "all have the new weights, and those that answered generate with them"
        return kind(
            f"weight transfer, {step} of attempt {self._attempt}: {causes} "
            f"({self._spec.legend()}). The version is still {self.version}; {state}"
        )

    def _end_session(self) -> None:
        if self._session is not None:
            self._session.close()
            self._session = None

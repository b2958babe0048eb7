"""Jobs of runs on vLLM servers."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

from parts import RoleSpec, run_plan
from worker import Rank

from megarl.config.schema import Config
from megarl.observe.metrics_file import read_metrics
from megarl.rollout.servers.lane import Lane
from megarl.train.ahead import Ahead
from megarl.train.build import build_run
from megarl.train.driver import train
from megarl.train.finish import close_run
from megarl.transfer.servers import HttpServer
from megarl.types import Rollout


@dataclass
class Found:
    """What rank 0 saw."""

    metrics: dict[int, dict[str, Any]]
    rows: dict[int, dict[int, int]]
    """Step -> row -> version of the weights that made the sample."""
    places: dict[int, list[int]]
    """Step -> places of the data's order that it took, where samples are made ahead."""


@dataclass(frozen=True)
class Moments:
    """When a server is killed, and when the run waits until it is back; told by files."""

    folder: Path
    kill_in_step: int
    kill_in: str
    """batch, or sync: the one at the end of the step."""
    wait_before_step: int
    pids: tuple[int, ...]
    """All of the server's: forked ones hold its port."""

    @property
    def left(self) -> Path:
        """There once a sync has gone on without it."""
        return self.folder / "left"

    @property
    def back(self) -> Path:
        """There once it answers again."""
        return self.folder / "back"

    @contextmanager
    def when_left(self, work: Callable[[], Any]) -> Iterator[Callable[[], Any]]:
        """Do `work` then, in a thread; what it returned."""
        found: list[Any] = []

        def run() -> None:
            while not self.left.exists():
                time.sleep(0.02)
            found.append(work())
            self.back.touch()

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        yield lambda: (thread.join(), found[0])[1]


def train_on_servers(
    rank: Rank,
    config: Config,
    path: str,
    actor: RoleSpec,
    moments: Moments | None = None,
    stop_before: int = 0,
) -> Found | None:
    """Train on the servers of the config; to the end, or to the start of a step."""
    plan = replace(run_plan(path, actor), rollout_ranks=())
    run = build_run(config, plan, rank.universe, rank.control)
    rows: dict[int, dict[int, int]] = {}
    places: dict[int, list[int]] = {}
    take = Ahead.take

    def taken(ahead: Ahead, found: list[int]) -> None:
        places[run.step + 1] = found
        take(ahead, found)

    def steps() -> Iterator[int]:
        for step in type(run).steps(run):
            if step + 1 == stop_before:
                return
            yield step

    poll, submit = Lane.poll, Lane.submit

    def seen(engine: Lane) -> list[Rollout]:
        step = run.step + 1
        done = poll(engine)
        mine = rows.setdefault(step, {})
        for one in done:
            assert one.request.row not in mine
            mine[one.request.row] = one.weight_version
        return done

    def submitted(engine: Lane, *args: Any, **kwargs: Any) -> None:
        submit(engine, *args, **kwargs)
        kill("batch")

    def kill(where: str) -> None:
        if moments and (run.step + 1, where) == (moments.kill_in_step, moments.kill_in):
            for pid in moments.pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    update = HttpServer.update

    def updated(server: HttpServer, *args: Any) -> None:
        kill("sync")
        update(server, *args)

    sync = type(run.weight_sync).run

    def synced(it: Any) -> Any:
        if moments and run.step + 2 == moments.wait_before_step and rank.rank == 0:
            while not moments.back.exists():
                time.sleep(0.02)
        report = sync(it)
        if moments and run.step + 1 == moments.kill_in_step:
            moments.left.touch()
        return report

    with (
        mock.patch.object(run, "steps", steps),
        mock.patch.object(Ahead, "take", taken),
        mock.patch.object(HttpServer, "update", updated),
        mock.patch.object(Lane, "poll", seen),
        mock.patch.object(Lane, "submit", submitted),
        mock.patch.object(type(run.weight_sync), "run", synced),
    ):
        train(run)
    close_run(run)
    if run.books.logger is None:
        return None
    found: dict[int, dict[str, Any]] = read_metrics(f"{config.run.dir}/metrics.jsonl")
    return Found(found, rows, places)

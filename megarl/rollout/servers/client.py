"""The asynchronous client: every sample is answered once, whatever happens to the servers.

Lifecycle: `async with RolloutClient(...)`; `submit` takes samples at any time, `on_done` hears of
each exactly once, with its answer or with why there is none. All of it runs in one event loop.

A sample goes to the server that the router names. Where that server fails (no connection, 5xx, a
time-out, an answer that is none), the sample waits for a moment and goes to another; the server
rests. Where a sample takes far longer than others did, it is given to a second server too, and the
first answer counts. What a server refuses (4xx) is the sample's fault and is not tried again.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
import statistics
import time
from collections import Counter, deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import aiohttp

from megarl.rollout.servers.address import ServerAddress
from megarl.rollout.servers.messages import (
    ROUTE,
    BadAnswer,
    OtherWeights,
    ServerAnswer,
    check_versions,
    prompt_body,
    read_answer,
    read_prompt_logprobs,
)
from megarl.rollout.servers.routing import Router

_LOG = logging.getLogger("megarl.rollout")
WATCH_S = 0.25
"""Seconds between two looks for stragglers, and for servers that all are silent."""
ENOUGH = 32
"""Answers after which it is known how long one takes."""


@dataclass(frozen=True, slots=True)
class ClientOptions:
    """How long and how often is tried."""

    max_in_flight: int = 256
    """Samples at a server at the same time."""
    timeout_s: float = 600.0
    """Longest wait for the answer to one request."""
    connect_timeout_s: float = 10.0
    patience_s: float = 180.0
    """How long all servers may be silent, with samples waiting, before the rest is given up."""
    max_attempts: int = 6
    """Requests of one sample that servers took and did not answer, until it is given up."""
    backoff_s: float = 0.2
    """Pause before the second request of a sample; doubled each time, give or take a half."""
    hedge_factor: float = 4.0
    """A sample that takes this many times as long as nine of ten did is asked of another server
    too; 0: never."""


@dataclass
class ClientStats:
    """Counts since the client was made."""

    answered: int = 0
    tokens: int = 0
    retries: int = 0
    hedges: int = 0
    surplus: int = 0
    """Answers to samples that had one already: dropped."""
    failures: Counter[str] = field(default_factory=Counter)
    """By server."""
    answers: Counter[str] = field(default_factory=Counter)
    """By server, those that were dropped included."""
    idle_s: float = 0.0
    """Seconds without any sample on its way."""


class Refused(Exception):
    """The server says that the sample's request is wrong."""


class Unreachable(Exception):
    """The server took no request: there was no connection."""


@dataclass(eq=False)
class Job:
    """One sample on its way."""

    name: Hashable
    """Its number: what `on_done` is told."""
    key: Hashable
    """Its prompt: samples with the same one like the same server."""
    body: dict[str, Any]
    """The request, but for its request_id."""
    max_tokens: int
    attempts: int = 0
    causes: list[str] = field(default_factory=list)
    tried: set[str] = field(default_factory=set)
    running: dict[asyncio.Task[None], str] = field(default_factory=dict)
    began: float = 0.0
    is_done: bool = False


Done = Callable[[Hashable, ServerAnswer | Exception], None]
"""(name of the sample, its answer or why there is none)."""


class RolloutClient:
    """Gives samples to servers; see the module."""

    def __init__(
        self, servers: Sequence[ServerAddress], options: ClientOptions, on_done: Done
    ) -> None:
        self.stats = ClientStats()
        self.versions: frozenset[str] | None = None
        """Names of weights that may have made an answer; a server with others is left alone until
        `set_servers`. None: any."""
        self._options, self._on_done = options, on_done
        self._router = Router(options.max_in_flight)
        self._servers: dict[str, ServerAddress] = {}
        self._jobs: dict[Hashable, Job] = {}
        self._pending: deque[Job] = deque()
        self._durations: deque[float] = deque(maxlen=512)
        self._heard = time.monotonic()
        self._idle_since: float | None = time.monotonic()
        self._tasks: set[asyncio.Task[None]] = set()
        self._session: aiohttp.ClientSession | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self.set_servers(servers)

    async def __aenter__(self) -> RolloutClient:
        options = self._options
        timeout = aiohttp.ClientTimeout(
            total=options.timeout_s, sock_connect=options.connect_timeout_s
        )
        # Servers are peers: a proxy of the environment is for the world outside.
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=60),
            timeout=timeout,
            trust_env=False,
        )
        self._watcher = asyncio.create_task(self._watch())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.abort()
        assert self._session is not None and self._watcher is not None
        self._watcher.cancel()
        await asyncio.gather(self._watcher, *self._tasks, return_exceptions=True)
        await self._session.close()

    def note_idle(self) -> ClientStats:
        """The counts, up to now."""
        now = time.monotonic()
        if self._idle_since is not None:
            self.stats.idle_s += now - self._idle_since
        self._idle_since = None if self._jobs else now
        return self.stats

    def set_servers(self, servers: Sequence[ServerAddress]) -> None:
        """The servers that there are now; samples at one that is gone are waited for there."""
        self._servers |= {one.name: one for one in servers}
        self._router.set_members([one.name for one in servers])

    def submit(self, jobs: Sequence[Job]) -> None:
        """Take samples; ValueError for a name that is on its way already."""
        for job in jobs:
            if job.name in self._jobs:
                raise ValueError(f"sample {job.name} is on its way already")
            self._jobs[job.name] = job
        if len(self._jobs) == len(jobs):
            self.note_idle()
            self._heard = time.monotonic()  # nobody could be heard before anybody was asked
        self._pending += jobs
        self._pump()

    def abort(self, names: Sequence[Hashable] | None = None) -> None:
        """Drop samples, all or these; `on_done` hears nothing of them."""
        for name in list(self._jobs) if names is None else names:
            job = self._jobs.pop(name, None)
            if job is not None:
                self._close(job)
        self._pending = deque(job for job in self._pending if not job.is_done)
        if not self._jobs and self._idle_since is None:
            self._idle_since = time.monotonic()

    def forget_prompts(self) -> None:
        """The servers' caches are empty."""
        self._router.forget_prompts()

    async def prompt_logprobs(self, token_ids: Sequence[int]) -> list[list[float]]:
        """What every server says of a text; raises for one that does not answer."""
        assert self._session is not None
        session, members = self._session, self._router.members()

        async def ask(address: ServerAddress) -> list[float]:
            url, body = f"{address.url}/{ROUTE}", prompt_body(token_ids)
            async with session.post(url, json=body, headers=address.headers) as response:
                if response.status != 200:
                    await self._refuse(response)
                return read_prompt_logprobs(await response.json(), token_ids)

        return list(await asyncio.gather(*(ask(self._servers[name]) for name in members)))

    def _pump(self) -> None:
        """Hand out what waits, as far as servers are free."""
        now = time.monotonic()
        while self._pending:
            job = self._pending[0]
            name = self._router.choose(job.key, now, frozenset(job.tried))
            if name is None:
                self._pump_later(now)
                return
            self._pending.popleft()
            self._launch(job, name)

    def _pump_later(self, now: float) -> None:
        """When the next resting server wakes; a busy one pumps by itself."""
        wakes = self._router.wakes_at()
        if wakes is None or (self._timer is not None and not self._timer.cancelled()):
            return

        def pump() -> None:
            self._timer = None
            self._pump()

        self._timer = asyncio.get_running_loop().call_later(max(wakes - now, 0.01), pump)

    def _launch(self, job: Job, server: str) -> None:
        self._router.begin(server)
        job.began = job.began or time.monotonic()
        task = asyncio.create_task(self._attempt(job, server))
        job.running[task] = server
        self._tasks.add(task)

        def ended(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            self._router.end(server)
            job.running.pop(task, None)
            self._pump()

        task.add_done_callback(ended)

    async def _attempt(self, job: Job, server: str) -> None:
        """One request; what comes of it is booked here, and nothing is raised."""
        began = time.monotonic()
        try:
            answer = await self._ask(job, server)
        except Refused as error:
            self._finish(job, error)
        except Unreachable as error:
            self._failed(job, server, str(error), counts=False)
        except OtherWeights as error:
            self._router.expel(server)
            self._failed(job, server, str(error), counts=False)
        except (aiohttp.ClientError, TimeoutError, BadAnswer, OSError) as error:
            cause = str(error) if isinstance(error, BadAnswer) else type(error).__name__
            self._failed(job, server, cause, counts=True)
        except Exception as error:  # A defect here must leave no sample without a result.
            self._finish(job, error)
        else:
            self._heard = time.monotonic()
            self._router.answered(server)
            self.stats.answers[server] += 1
            self._durations.append(self._heard - began)
            self._finish(job, answer)

    async def _ask(self, job: Job, server: str) -> ServerAnswer:
        assert self._session is not None
        address = self._servers[server]
        body = job.body | {"request_id": f"{job.name}-{job.attempts}-{len(job.running)}"}
        try:
            response = await self._session.post(
                f"{address.url}/{ROUTE}", json=body, headers=address.headers
            )
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            raise Unreachable(type(error).__name__) from None
        async with response:
            if response.status >= 400:
                await self._refuse(response)
            try:
                answer = read_answer(json.loads(await response.read()), job.max_tokens)
            except json.JSONDecodeError:
                raise BadAnswer("its answer is no JSON") from None
        if self.versions is not None:
            check_versions(answer, self.versions)
        return answer

    async def _refuse(self, response: aiohttp.ClientResponse) -> None:
        """Raise for an answer of status 400 or more."""
        said = (await response.text(errors="replace"))[:300]
        if response.status in (408, 425, 429) or response.status >= 500:
            raise BadAnswer(f"status {response.status}")
        hint = " (start it with --enable-scale-out)" if response.status == 404 else ""
        raise Refused(f"status {response.status}{hint}: {said}")

    def _failed(self, job: Job, server: str, cause: str, *, counts: bool) -> None:
        if self._router.failed(server, time.monotonic()):
            _LOG.warning("rollout: %s: %s; its samples go to others", server, cause)
        self.stats.failures[server] += 1
        job.causes.append(f"{server}: {cause}")
        job.tried.add(server)
        job.attempts += counts
        if job.is_done or len(job.running) > 1:  # its hedge is still on the way
            return
        if job.attempts >= self._options.max_attempts:
            self._finish(job, self._given_up(job, f"{job.attempts} requests failed"))
            return
        self.stats.retries += 1
        pause = self._options.backoff_s * 2 ** min(len(job.causes) - 1, 8)
        pause *= random.Random(f"{job.name} {len(job.causes)}").uniform(0.5, 1.5)
        asyncio.get_running_loop().call_later(pause, self._again, job)

    def _again(self, job: Job) -> None:
        if not job.is_done:
            job.began = 0.0
            self._pending.append(job)
            self._pump()

    def _finish(self, job: Job, result: ServerAnswer | Exception) -> None:
        """The sample's one result; what comes after it is dropped."""
        if job.is_done:
            self.stats.surplus += isinstance(result, ServerAnswer)
            return
        self._jobs.pop(job.name, None)
        self._close(job)
        if not self._jobs:
            self._idle_since = time.monotonic()
        if isinstance(result, ServerAnswer):
            self.stats.answered += 1
            self.stats.tokens += len(result.token_ids)
        self._on_done(job.name, result)

    def _close(self, job: Job) -> None:
        job.is_done = True
        current = asyncio.current_task() if job.running else None
        for task in job.running:
            if task is not current:
                task.cancel()  # vLLM drops a request whose connection closes

    async def _watch(self) -> None:
        """Hedge stragglers; give up where nobody answers."""
        while True:
            await asyncio.sleep(WATCH_S)
            now = time.monotonic()
            if not self._jobs:
                self._heard = now
            running = any(job.running for job in self._jobs.values())
            if not running and now - self._heard > self._options.patience_s:
                silent = f"no server has answered for {now - self._heard:.0f} s (patience_s)"
                for job in list(self._jobs.values()):
                    self._finish(job, self._given_up(job, silent))
                self._pending.clear()
            elif not self._pending:
                self._hedge(now)

    def _hedge(self, now: float) -> None:
        """Give what takes far too long to a second server, where one is free."""
        factor = self._options.hedge_factor
        if not factor or len(self._durations) < ENOUGH:
            return
        slow = factor * statistics.quantiles(self._durations, n=10)[-1]
        for job in list(self._jobs.values()):
            if len(job.running) != 1 or now - job.began < slow:
                continue
            (first,) = job.running.values()
            second = self._router.choose(job.key, now, frozenset({first, *job.tried}))
            if second is not None and second != first:
                self.stats.hedges += 1
                self._launch(job, second)

    @staticmethod
    def _given_up(job: Job, why: str) -> Exception:
        causes = "; ".join(dict.fromkeys(job.causes[-6:])) or "it was never asked"
        return TimeoutError(f"{why} ({causes})")

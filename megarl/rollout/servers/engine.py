"""Servers as a `RolloutEngine`: what the rollout role of a rank asks, answered over HTTP.

The client's event loop runs in a thread of its own. Weights go another way (`megarl.transfer`); the
engine is told of them by `weights_are`.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import uuid
from collections.abc import Callable, Hashable, Sequence

from megarl.errors import RunError
from megarl.rollout.engine import NOT_COMMITTED
from megarl.rollout.local import Decode
from megarl.rollout.servers.address import ServerAddress
from megarl.rollout.servers.client import ClientOptions, Job, Refused, RolloutClient
from megarl.rollout.servers.messages import ServerAnswer, generate_body
from megarl.types import Rollout, RolloutRequest, SamplingSpec

Result = tuple[int, ServerAnswer | Exception]
"""(row, what came of it)."""


class ServerEngine:
    """Gives requests to the servers and hands out rollouts; see `RolloutEngine`.

    Raises RunError where a sample is refused, or nobody answers.
    """

    def __init__(
        self, servers: Sequence[ServerAddress], options: ClientOptions, decode: Decode
    ) -> None:
        self.weight_version = -1
        self._decode = decode
        self._requests: dict[int, RolloutRequest] = {}
        self._results: queue.SimpleQueue[Result] = queue.SimpleQueue()
        self._finished: list[Rollout] = []
        # Names that no other run or batch gives to the same servers.
        self._prefix, self._batch = uuid.uuid4().hex[:12], 0
        self._loop = asyncio.new_event_loop()
        self._closing = asyncio.Event()
        self._client: RolloutClient | None = None
        started = threading.Event()
        self._thread = threading.Thread(
            target=self._run, args=(servers, options, started), name="megarl-client", daemon=True
        )
        self._thread.start()
        started.wait()

    def submit(
        self, requests: Sequence[RolloutRequest], sampling: SamplingSpec, *, more: bool = False
    ) -> None:
        """See RolloutEngine."""
        if self.weight_version < 0:
            raise RunError(NOT_COMMITTED)
        self._batch += 1
        jobs = []
        for request in requests:
            if request.row in self._requests:
                raise RunError(f"rollout: sample {request.row} was submitted twice")
            self._requests[request.row] = request
            name = (self._prefix, self._batch, request.row)
            text = "-".join(map(str, name))
            jobs.append(
                Job(
                    name=name,
                    key=request.prompt.token_ids,
                    body=generate_body(request, sampling, text),
                    max_tokens=sampling.max_response_length,
                )
            )
        self._call(lambda client: client.submit(jobs))

    def step(self) -> bool:
        """See RolloutEngine; waits until a sample is finished, where one is on its way."""
        if not self._requests:
            return False
        self._take(self._results.get())
        while True:
            try:
                self._take(self._results.get_nowait())
            except queue.Empty:
                return True

    def poll(self) -> list[Rollout]:
        """See RolloutEngine."""
        done, self._finished = self._finished, []
        return sorted(done, key=lambda rollout: rollout.request.row)

    def abort(self, rows: Sequence[int] | None = None) -> None:
        """See RolloutEngine."""
        dropped = set(self._requests if rows is None else rows)
        self._call(lambda client: client.abort([n for n in client.names() if _row(n) in dropped]))
        for row in dropped:
            self._requests.pop(row, None)

    def weights_are(self, version: int) -> None:
        """All servers have the weights of this version, and none of an earlier one's cache."""
        self.weight_version = version
        self._call(lambda client: client.forget_prompts())

    def set_servers(self, servers: Sequence[ServerAddress]) -> None:
        """The servers that there are now."""
        self._call(lambda client: client.set_servers(servers))

    def close(self) -> None:
        """Drop what is on its way, and end the thread."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._closing.set)
            self._thread.join()

    def _take(self, result: Result) -> None:
        row, answer = result
        request = self._requests.pop(row, None)
        if request is None:  # aborted while its answer came
            return
        if not isinstance(answer, ServerAnswer):
            self.abort()
            what = "a server refuses" if isinstance(answer, Refused) else "no server answered"
            raise RunError(
                f"rollout: {what} sample {row} (prompt {request.prompt.prompt_id}, "
                f"{len(request.prompt.token_ids)} tokens): {answer}"
            )
        self._finished.append(
            Rollout(
                request=request,
                response_ids=answer.token_ids,
                logprobs=answer.logprobs,
                text=self._decode(answer.token_ids),
                finish_reason=answer.finish_reason,
                weight_version=self._version(answer, row),
            )
        )

    def _version(self, answer: ServerAnswer, row: int) -> int:
        """The oldest weights that made a token of the sample."""
        try:
            return min((int(name) for name, _ in answer.versions), default=self.weight_version)
        except ValueError:
            names = ", ".join(version for version, _ in answer.versions)
            raise RunError(
                f"rollout: sample {row} was made by weights that no sync delivered ({names}): a "
                "server was started anew, or takes its weights from somebody else"
            ) from None

    def _run(
        self, servers: Sequence[ServerAddress], options: ClientOptions, started: threading.Event
    ) -> None:
        asyncio.set_event_loop(self._loop)

        def done(name: Hashable, result: ServerAnswer | Exception) -> None:
            self._results.put((_row(name), result))

        async def main() -> None:
            async with RolloutClient(servers, options, done) as self._client:
                started.set()
                await self._closing.wait()

        self._loop.run_until_complete(main())
        self._loop.close()

    def _call(self, work: Callable[[RolloutClient], object]) -> None:
        """Do something in the client's thread, and wait for it."""

        async def call() -> None:
            assert self._client is not None
            work(self._client)

        asyncio.run_coroutine_threadsafe(call(), self._loop).result()


def _row(name: Hashable) -> int:
    """The row of the sample that goes by this name."""
    assert isinstance(name, tuple)
    return int(name[-1])

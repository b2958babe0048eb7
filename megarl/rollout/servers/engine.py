"""Servers as a `RolloutEngine`: what the rollout role asks, answered over HTTP.

The client's event loop runs in a thread of its own. Weights go another way (`megarl.transfer`); the
engine is told of them by `weights_are`.
"""

from __future__ import annotations

import queue
import time
import uuid
from collections.abc import Hashable, Sequence
from copy import deepcopy
from typing import cast

from megarl.errors import RunError
from megarl.rollout.engine import NOT_COMMITTED
from megarl.rollout.local import Decode
from megarl.rollout.servers.address import ServerAddress
from megarl.rollout.servers.client import ClientOptions, ClientStats, Job, Refused, RolloutClient
from megarl.rollout.servers.messages import ServerAnswer, generate_body
from megarl.rollout.servers.pool import ServerSource
from megarl.rollout.servers.thread import ClientThread
from megarl.types import Rollout, RolloutRequest, SamplingSpec

Name = tuple[str, int, int]
"""Of a sample on its way: (this engine, batch, row); no other run gives it to the same servers."""


class ServerEngine:
    """Gives requests to the servers and hands out rollouts; see `RolloutEngine`.

    Raises RunError where a sample is refused, or nobody answers.
    """

    def __init__(self, source: ServerSource, options: ClientOptions, decode: Decode) -> None:
        """source: who knows the servers; they are asked after `weights_are` has named them."""
        self.source = source
        self.weight_version = -1
        self._decode = decode
        self._requests: dict[int, tuple[Name, RolloutRequest]] = {}
        self._results: queue.SimpleQueue[tuple[Hashable, ServerAnswer | Exception]]
        self._results = queue.SimpleQueue()
        self._finished: list[Rollout] = []
        self._prefix, self._batch = uuid.uuid4().hex[:12], 0
        self._noted, self._noted_at = ClientStats(), time.monotonic()
        self._thread = ClientThread(options, lambda *result: self._results.put(result))

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
            name = (self._prefix, self._batch, request.row)
            self._requests[request.row] = name, request
            text = "-".join(map(str, name))
            jobs.append(
                Job(
                    name=name,
                    key=request.prompt.token_ids,
                    body=generate_body(request, sampling, text),
                    max_tokens=sampling.max_response_length,
                )
            )
        self._thread.call(lambda client: client.submit(jobs))

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
        waiting = {rollout.request.row for rollout in self._finished}
        dropped = (set(self._requests) | waiting) if rows is None else set(rows)
        self._finished = [one for one in self._finished if one.request.row not in dropped]
        names = [self._requests.pop(row)[0] for row in dropped if row in self._requests]
        self._thread.call(lambda client: client.abort(names))

    def sleep(self) -> None:
        """See RolloutEngine: servers keep what they have."""

    def prompt_logprobs(self, token_ids: Sequence[int]) -> list[list[float]]:
        """See RolloutEngine: of every server."""
        return self._thread.begin(lambda client: client.prompt_logprobs(token_ids)).result()

    def weights_are(self, version: int, servers: Sequence[ServerAddress]) -> None:
        """These servers have the weights of this version, and nobody else is asked."""
        self.weight_version = version

        def tell(client: RolloutClient) -> None:
            client.versions = range(version, version + 1)
            client.set_servers(servers)
            client.forget_prompts()

        self._thread.call(tell)

    def take_metrics(self) -> dict[str, float]:
        """What the client did since they were taken last."""
        now, before = time.monotonic(), self._noted
        stats = self._thread.call(lambda client: deepcopy(client.stats))
        seconds = max(now - self._noted_at, 1e-9)
        self._noted, self._noted_at = stats, now
        return {
            "rollout/servers": float(len(stats.answers - before.answers)),
            "rollout/requests_per_s": (stats.answered - before.answered) / seconds,
            "rollout/retries": float(stats.retries - before.retries),
            "rollout/hedges": float(stats.hedges - before.hedges),
            "rollout/surplus_answers": float(stats.surplus - before.surplus),
        }

    def close(self) -> None:
        """Drop what is on its way, and end the thread; servers that the run started end."""
        self._thread.close()
        self.source.close()

    def _take(self, result: tuple[Hashable, ServerAnswer | Exception]) -> None:
        name, answer = result
        row = cast(Name, name)[-1]
        known, request = self._requests.get(row, (None, None))
        if known != name or request is None:  # aborted while its answer came
            return
        del self._requests[row]
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
                weight_version=min(int(name) for name, _ in answer.versions),
            )
        )

"""Requests of one kind to the servers, and what came of them: a batch, or what is ahead of it."""

from __future__ import annotations

import queue
import uuid
from collections.abc import Hashable, Mapping, Sequence
from typing import cast

from megarl.errors import RunError
from megarl.rollout.engine import NOT_COMMITTED
from megarl.rollout.local import Decode
from megarl.rollout.servers.client import Job, Refused
from megarl.rollout.servers.messages import ServerAnswer, generate_body
from megarl.rollout.servers.thread import ClientThread
from megarl.types import Rollout, RolloutRequest, SamplingSpec

Name = tuple[str, int, int]
"""Of a sample on its way: (lane, batch, row); no other run gives it to the same servers."""
Result = ServerAnswer | Exception


class Desk:
    """What all lanes share: the client, and which weights may have made an answer."""

    def __init__(self, thread: ClientThread, decode: Decode) -> None:
        self.thread, self.decode = thread, decode
        self.lanes: dict[str, queue.SimpleQueue[tuple[Name, Result] | None]] = {}
        self.versions: Mapping[str, int] = {}
        """The servers' name of weights -> their version; empty before the first sync."""

    def deliver(self, name: Hashable, result: Result) -> None:
        """A result, to the lane that asked; called in the client's thread."""
        known = cast(Name, name)
        if known[0] in self.lanes:
            self.lanes[known[0]].put((known, result))


class Lane:
    """Gives requests to the servers and hands out rollouts, as a `RolloutEngine` does."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._name, self._batch = uuid.uuid4().hex[:12], 0
        self._results = desk.lanes[self._name] = queue.SimpleQueue()
        self._requests: dict[int, tuple[Name, RolloutRequest]] = {}
        self._finished: list[Rollout] = []

    def submit(
        self, requests: Sequence[RolloutRequest], sampling: SamplingSpec, *, more: bool = False
    ) -> None:
        """See RolloutEngine."""
        if not self._desk.versions:
            raise RunError(NOT_COMMITTED)
        self._batch += 1
        jobs = []
        for request in requests:
            if request.row in self._requests:
                raise RunError(f"rollout: sample {request.row} was submitted twice")
            name = (self._name, self._batch, request.row)
            self._requests[request.row] = name, request
            body = generate_body(request, sampling, "-".join(map(str, name)))
            key, length = request.prompt.token_ids, sampling.max_response_length
            jobs.append(Job(name=name, key=key, body=body, max_tokens=length))
        self._desk.thread.call(lambda client: client.submit(jobs))

    def step(self) -> bool:
        """See RolloutEngine; waits until a sample is finished, where one is on its way."""
        if not self._requests:
            return False
        self._take(self._results.get())
        self.look()
        return True

    def wake(self) -> None:
        """Have a step that waits return; called in any thread."""
        self._results.put(None)

    def look(self) -> None:
        """Take in what has come, without waiting."""
        while True:
            try:
                self._take(self._results.get_nowait())
            except queue.Empty:
                return

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
        self._desk.thread.call(lambda client: client.abort(names))

    def _take(self, result: tuple[Name, Result] | None) -> None:
        if result is None:
            return
        name, answer = result
        row = name[-1]
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
        versions = tuple((self._desk.versions[name], count) for name, count in answer.versions)
        self._finished.append(
            Rollout(
                request=request,
                response_ids=answer.token_ids,
                logprobs=answer.logprobs,
                text=self._desk.decode(answer.token_ids),
                finish_reason=answer.finish_reason,
                weight_version=min(version for version, _ in versions),
                versions=versions,
            )
        )

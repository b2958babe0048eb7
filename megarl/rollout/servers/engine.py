"""Servers as a `RolloutEngine`: what the rollout role asks, answered over HTTP.

The client's event loop runs in a thread of its own. Weights go another way (`megarl.transfer`); the
engine is told of them by `weights_are`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from copy import deepcopy

from megarl.rollout.local import Decode
from megarl.rollout.servers.address import ServerAddress
from megarl.rollout.servers.client import ClientOptions, ClientStats, RolloutClient
from megarl.rollout.servers.lane import Desk, Lane
from megarl.rollout.servers.pool import ServerSource
from megarl.rollout.servers.thread import ClientThread


class ServerEngine(Lane):
    """A batch's lane, and what concerns all lanes; see `RolloutEngine`.

    Raises RunError where a sample is refused, or nobody answers.
    """

    def __init__(self, source: ServerSource, options: ClientOptions, decode: Decode) -> None:
        """source: who knows the servers; they are asked after `weights_are` has named them."""
        self.source = source
        self.weight_version = -1
        self._noted, self._noted_at = ClientStats(), time.monotonic()
        self._thread = ClientThread(options, lambda *result: desk.deliver(*result))
        desk = self._shared = Desk(self._thread, decode)
        super().__init__(desk)

    def lane(self) -> Lane:
        """One more, whose samples do not come out here."""
        return Lane(self._shared)

    def sleep(self) -> None:
        """See RolloutEngine: servers keep what they have."""

    def prompt_logprobs(self, token_ids: Sequence[int]) -> list[list[float]]:
        """See RolloutEngine: of every server."""
        return self._thread.begin(lambda client: client.prompt_logprobs(token_ids)).result()

    def weights_come(self, version: int, name: str) -> None:
        """These are about to: samples that are under way may go on with them at once."""
        if self.weight_version < 0:  # nothing is under way
            return
        self._shared.versions = {**self._shared.versions, name: version}

        def tell(client: RolloutClient) -> None:
            client.versions = (client.versions or frozenset()) | {name}

        self._thread.call(tell)

    def weights_are(
        self, version: int, servers: Sequence[ServerAddress], names: Mapping[str, int]
    ) -> None:
        """These servers have the weights of this version, and nobody else is asked.

        names: how servers call the weights that may have made an answer, older ones included.
        """
        self.weight_version = version
        self._shared.versions = dict(names)

        def tell(client: RolloutClient) -> None:
            client.versions = frozenset(names)
            client.set_servers(servers)
            client.forget_prompts()

        self._thread.call(tell)

    def take_metrics(self) -> dict[str, float]:
        """What the client did since they were taken last."""
        now, before = time.monotonic(), self._noted
        stats = self._thread.call(lambda client: deepcopy(client.note_idle()))
        seconds = max(now - self._noted_at, 1e-9)
        self._noted, self._noted_at = stats, now
        return {
            "rollout/servers": float(len(stats.answers - before.answers)),
            "rollout/requests_per_s": (stats.answered - before.answered) / seconds,
            "rollout/retries": float(stats.retries - before.retries),
            "rollout/hedges": float(stats.hedges - before.hedges),
            "rollout/surplus_answers": float(stats.surplus - before.surplus),
            "rollout/idle_s": stats.idle_s - before.idle_s,
        }

    def close(self) -> None:
        """Drop what is on its way, and end the thread; servers that the run started end."""
        self._thread.close()
        self.source.close()

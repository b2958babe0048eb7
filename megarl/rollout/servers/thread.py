"""A client in a thread of its own, for callers that have no event loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from typing import TypeVar

from megarl.rollout.servers.client import ClientOptions, Done, RolloutClient

T = TypeVar("T")


class ClientThread:
    """Runs a client's event loop until it is closed."""

    def __init__(self, options: ClientOptions, on_done: Done) -> None:
        """on_done: called in that thread; see RolloutClient."""
        self._loop = asyncio.new_event_loop()
        self._closing = asyncio.Event()
        self._client: RolloutClient | None = None
        started = threading.Event()
        self._thread = threading.Thread(
            target=self._run, args=(options, on_done, started), name="megarl-client", daemon=True
        )
        self._thread.start()
        started.wait()

    def call(self, work: Callable[[RolloutClient], T]) -> T:
        """Do something with the client, in its thread, and wait for it."""

        async def run(client: RolloutClient) -> T:
            return work(client)

        return self.begin(run).result()

    def begin(self, work: Callable[[RolloutClient], Awaitable[T]]) -> Future[T]:
        """The same for what takes its time."""

        async def run() -> T:
            assert self._client is not None
            return await work(self._client)

        return asyncio.run_coroutine_threadsafe(run(), self._loop)

    def close(self) -> None:
        """Drop what is on its way, and end the thread."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._closing.set)
            self._thread.join()

    def _run(self, options: ClientOptions, on_done: Done, started: threading.Event) -> None:
        asyncio.set_event_loop(self._loop)

        async def main() -> None:
            async with RolloutClient((), options, on_done) as self._client:
                started.set()
                await self._closing.wait()

        self._loop.run_until_complete(main())
        self._loop.close()

"""A server that answers like vLLM's /inference/v1/generate, and breaks as it is told."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

Fault = Callable[["Stub", dict[str, Any]], Any]
"""(stub, request) -> None, or a coroutine that answers in the stub's place (None: go on)."""


def tokens_of(body: dict[str, Any]) -> list[int]:
    """What the stub answers: a function of prompt and seed alone, as greedy decoding would be."""
    start = sum(body["token_ids"]) + body["sampling_params"].get("seed", 0)
    return [(start * 31 + 7 * i) % 97 for i in range(body["sampling_params"]["max_tokens"])]


@dataclass
class Stub:
    """One server; `url` once it runs."""

    fault: Fault | None = None
    version: str = "1"
    url: str = ""
    asked: list[str] = field(default_factory=list)
    """request_id of every request that came."""
    prompts: list[tuple[int, ...]] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)
    """Those whose client went away before the answer."""
    running: int = 0
    most: int = 0
    """Requests at the same time."""
    headers: list[dict[str, str]] = field(default_factory=list)
    loop: asyncio.AbstractEventLoop | None = None
    """Of the thread that it runs in, where that is another."""
    _runner: web.AppRunner | None = None

    def do(self, work: Coroutine[Any, Any, None]) -> None:
        """Have its thread do something, and wait for it."""
        assert self.loop is not None
        asyncio.run_coroutine_threadsafe(work, self.loop).result()

    async def start(self, port: int = 0) -> None:
        app = web.Application(client_max_size=1 << 26)
        app.router.add_post("/inference/v1/generate", self._generate)
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.05)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", port)
        await site.start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    async def stop(self) -> None:
        """Gone at once, with what it was doing."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def restart(self) -> None:
        """At the same address."""
        await self.stop()
        await self.start(int(self.url.rpartition(":")[2]))

    async def _generate(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.asked.append(body["request_id"])
        self.prompts.append(tuple(body["token_ids"]))
        self.headers.append(dict(request.headers))
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            answer = await self.fault(self, body) if self.fault is not None else None
            if callable(answer):  # a fault that needs the connection
                return await answer(request)
            return answer or web.json_response(self.answer(body))
        except asyncio.CancelledError:
            self.cancelled.append(body["request_id"])
            raise
        finally:
            self.running -= 1

    def answer(self, body: dict[str, Any]) -> dict[str, Any]:
        """The JSON of a good answer."""
        tokens = tokens_of(body)
        content = [{"token_id": token, "logprob": -0.5, "rank": 1} for token in tokens]
        spans = [{"version": self.version, "start": 0, "end": len(tokens)}]
        choice = {"index": 0, "finish_reason": "length", "token_ids": tokens}
        choice |= {"logprobs": {"content": content}, "weight_versions": spans}
        return {"request_id": body["request_id"], "choices": [choice]}


@asynccontextmanager
async def stubs(*faults: Fault | None) -> AsyncIterator[list[Stub]]:
    """Running servers, one for each fault."""
    found = [Stub(fault) for fault in faults]
    for stub in found:
        await stub.start()
    try:
        yield found
    finally:
        for stub in found:
            await stub.stop()


@contextmanager
def stubs_beside(*faults: Fault | None) -> Iterator[list[Stub]]:
    """Running servers, in a thread of their own."""
    found = [Stub(fault) for fault in faults]
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    for stub in found:
        stub.loop = loop
        stub.do(stub.start())
    try:
        yield found
    finally:
        for stub in found:
            stub.do(stub.stop())
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def delay(seconds: float) -> Fault:
    """It takes its time."""

    async def fault(stub: Stub, body: dict[str, Any]) -> None:
        await asyncio.sleep(seconds)

    return fault


def status(code: int, times: int = 10**9) -> Fault:
    """So many answers of this status; good ones then."""
    left = [times]

    async def fault(stub: Stub, body: dict[str, Any]) -> web.Response | None:
        left[0] -= 1
        return web.Response(status=code, text="the stub says no") if left[0] >= 0 else None

    return fault


async def cut_off(stub: Stub, body: dict[str, Any]) -> web.Response:
    """JSON that ends in the middle."""
    text = json.dumps(stub.answer(body))
    return web.Response(text=text[: len(text) // 2], content_type="application/json")


async def reset(stub: Stub, body: dict[str, Any]) -> Any:
    """The connection breaks instead of an answer."""

    async def answer(request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    return answer

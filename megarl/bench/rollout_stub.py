"""A server that answers at once, or after a while, without any model: what is left is the client.

python -m megarl.bench.rollout_stub       prints its port, and answers until its input closes
python -m megarl.bench.rollout_stub PORT COUNT DELAY   COUNT samples at a time, as JSON
"""

from __future__ import annotations

import asyncio
import json
import resource
import sys
import time
from collections.abc import Hashable
from typing import Any

from aiohttp import web

from megarl.rollout.servers.address import ServerAddress
from megarl.rollout.servers.client import ClientOptions, Job, RolloutClient
from megarl.rollout.servers.messages import ROUTE, generate_body
from megarl.types import Prompt, RolloutRequest, SamplingSpec

TOKENS = 16


def body_of(row: int) -> dict[str, Any]:
    """A sample's request."""
    request = RolloutRequest(row, row, Prompt(row, (2, 3, row % 50 + 4), "", "", ""), row)
    return generate_body(request, SamplingSpec(max_response_length=TOKENS), str(row))


async def serve() -> None:
    """Answer with TOKENS tokens; a prompt's first token is the delay in centiseconds, less 2."""

    async def generate(request: web.Request) -> web.Response:
        body = await request.json()
        if (delay := body["token_ids"][0] - 2) > 0:
            await asyncio.sleep(delay / 100)
        content = [{"token_id": 5, "logprob": -0.5, "rank": 1}] * TOKENS
        spans = [{"version": "1", "start": 0, "end": TOKENS}]
        choice = {"index": 0, "finish_reason": "length", "token_ids": [5] * TOKENS}
        choice |= {"logprobs": {"content": content}, "weight_versions": spans}
        return web.json_response({"request_id": body["request_id"], "choices": [choice]})

    app = web.Application()
    app.router.add_post(f"/{ROUTE}", generate)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, backlog=4096).start()
    sys.stdout.write(f"{runner.addresses[0][1]}\n")
    sys.stdout.flush()
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


async def ask(port: int, count: int, delay: int) -> dict[str, float]:
    """So many samples at the same time, delay in centiseconds: seconds, latencies, memory."""
    ends: dict[Hashable, float] = {}
    done = asyncio.Event()

    def heard(name: Hashable, result: Any) -> None:
        if isinstance(result, Exception):
            raise result
        ends[name] = time.perf_counter()
        if len(ends) == count:
            done.set()

    options = ClientOptions(max_in_flight=count, timeout_s=300, hedge_factor=0)
    server = ServerAddress("server 0", f"http://127.0.0.1:{port}")
    async with RolloutClient([server], options, heard) as client:
        jobs = []
        for row in range(count):
            body = body_of(row)
            body["token_ids"][0] = 2 + delay
            jobs.append(Job(row, (row,), body, TOKENS))
        began = time.perf_counter()
        client.submit(jobs)
        await done.wait()
    times = sorted(end - began - delay / 100 for end in ends.values())
    return {
        "seconds": times[-1] + delay / 100,
        "p50": times[len(times) // 2],
        "p99": times[min(int(0.99 * len(times)), len(times) - 1)],
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def main(arguments: list[str]) -> None:
    """See the module."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    if not arguments:
        asyncio.run(serve())
        return
    sys.stdout.write(json.dumps(asyncio.run(ask(*map(int, arguments)))) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])

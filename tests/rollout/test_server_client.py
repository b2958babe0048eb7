"""The client of rollout servers against servers that break: nothing is lost, doubled or late."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Hashable, Sequence
from typing import Any

import pytest
from stub_server import Fault, Stub, cut_off, delay, reset, status, stubs, tokens_of

from megarl.rollout.servers.address import ServerAddress
from megarl.rollout.servers.client import ClientOptions, Job, Refused, RolloutClient
from megarl.rollout.servers.messages import ServerAnswer, generate_body
from megarl.types import Prompt, RolloutRequest, SamplingSpec

QUICK = ClientOptions(
    max_in_flight=16, timeout_s=5, connect_timeout_s=2, patience_s=3, backoff_s=0.02
)


def jobs(count: int, *, prompts: int = 10**9, tokens: int = 5) -> list[Job]:
    """Samples of so many prompts."""
    found = []
    for row in range(count):
        prompt = Prompt(row % prompts, (2, 3, row % prompts + 4), "", "", "")
        request = RolloutRequest(row, row, prompt, 1000 + row)
        body = generate_body(request, SamplingSpec(max_response_length=tokens), str(row))
        found.append(Job(row, prompt.token_ids, body, tokens))
    return found


class Ledger:
    """What came of each sample."""

    def __init__(self) -> None:
        self.results: dict[Hashable, ServerAnswer | Exception] = {}
        self.times: Counter[Hashable] = Counter()
        self.all = asyncio.Event()
        self.wanted = 0

    def done(self, name: Hashable, result: ServerAnswer | Exception) -> None:
        self.results[name] = result
        self.times[name] += 1
        if len(self.results) >= self.wanted:
            self.all.set()


async def finish(
    servers: Sequence[Stub], given: list[Job], options: ClientOptions = QUICK, limit_s: float = 30
) -> tuple[Ledger, RolloutClient]:
    """All samples through a client, each heard of once, with its own tokens."""
    ledger = Ledger()
    ledger.wanted = len(given)
    bodies = {job.name: job.body for job in given}
    addresses = [ServerAddress(f"server {i}", stub.url) for i, stub in enumerate(servers)]
    async with RolloutClient(addresses, options, ledger.done) as client:
        client.submit(given)
        await asyncio.wait_for(ledger.all.wait(), limit_s)
        await asyncio.sleep(0.05)
    assert set(ledger.results) == set(bodies) and set(ledger.times.values()) <= {1}
    for name, result in ledger.results.items():
        if isinstance(result, ServerAnswer):
            assert list(result.token_ids) == tokens_of(bodies[name])
    return ledger, client


def good(ledger: Ledger) -> bool:
    return all(isinstance(one, ServerAnswer) for one in ledger.results.values())


def test_each_sample_is_answered_with_its_own_tokens() -> None:
    async def main() -> None:
        async with stubs(delay(0.01), delay(0.01), None) as servers:
            ledger, client = await finish(servers, jobs(200))
            assert good(ledger) and client.stats.answered == 200
            assert client.stats.tokens == 1000 and client.stats.retries == 0
            assert sum(len(stub.asked) for stub in servers) == 200
            assert all(stub.most <= QUICK.max_in_flight for stub in servers)
            assert min(len(stub.asked) for stub in servers) > 20
            ids = [name for stub in servers for name in stub.asked]
            assert len(set(ids)) == 200

    asyncio.run(main())


def test_samples_of_a_prompt_share_a_server() -> None:
    """Its prefix is in the cache there."""

    async def main() -> None:
        async with stubs(delay(0.01), delay(0.01)) as servers:
            await finish(servers, jobs(96, prompts=12))
            homes = [set(stub.prompts) for stub in servers]
            assert len(homes[0] & homes[1]) <= 3 and all(homes)

    asyncio.run(main())


BROKEN: dict[str, Fault] = {
    "status 500": status(500),
    "status 503 at first": status(503, times=30),
    "cut-off JSON": cut_off,
    "resets": reset,
}


@pytest.mark.parametrize("fault", BROKEN.values(), ids=BROKEN.keys())
def test_a_server_that_breaks_costs_no_sample(fault: Fault) -> None:
    async def main() -> None:
        async with stubs(fault, delay(0.005)) as servers:
            ledger, client = await finish(servers, jobs(150))
            assert good(ledger)
            assert client.stats.retries > 0 and client.stats.failures["server 0"] > 0
            assert "server 1" not in client.stats.failures

    asyncio.run(main())


def test_a_server_that_hangs_is_left_after_the_time_out() -> None:
    async def main() -> None:
        options = ClientOptions(max_in_flight=16, timeout_s=0.5, backoff_s=0.02, hedge_factor=0)
        async with stubs(delay(60), None) as servers:
            began = time.monotonic()
            ledger, client = await finish(servers, jobs(64), options)
            assert good(ledger) and time.monotonic() - began < 10
            await asyncio.sleep(0.1)
            assert len(servers[0].cancelled) == len(servers[0].asked)  # nobody waits there
            assert client.stats.failures["server 0"] >= 1

    asyncio.run(main())


def test_a_straggler_is_asked_of_another_server() -> None:
    """One sample in sixty takes a minute where it first is; the first answer counts."""

    async def slow_once(stub: Stub, body: dict[str, Any]) -> None:
        await asyncio.sleep(60 if body["request_id"].startswith("59-0-1") else 0.02)

    async def main() -> None:
        async with stubs(slow_once, slow_once) as servers:
            began = time.monotonic()
            ledger, client = await finish(servers, jobs(60), ClientOptions(max_in_flight=8))
            assert good(ledger) and time.monotonic() - began < 15
            assert client.stats.hedges >= 1 and client.stats.surplus == 0
            assert sum("59-" in name for stub in servers for name in stub.asked) == 2

    asyncio.run(main())


def test_a_server_fifty_times_as_slow_gets_little() -> None:
    async def main() -> None:
        async with stubs(delay(0.5), delay(0.01)) as servers:
            ledger, _ = await finish(servers, jobs(300), ClientOptions(max_in_flight=4))
            assert good(ledger)
            assert len(servers[0].asked) < 0.25 * len(servers[1].asked)

    asyncio.run(main())


def test_a_killed_server_and_all_but_one() -> None:
    """In mid-batch; the dead ones come back later and are used again."""

    async def main() -> None:
        async with stubs(delay(0.03), delay(0.03), delay(0.03)) as servers:
            ledger = Ledger()
            given = jobs(400)
            ledger.wanted = len(given)
            addresses = [ServerAddress(f"server {i}", s.url) for i, s in enumerate(servers)]
            async with RolloutClient(addresses, QUICK, ledger.done) as client:
                client.submit(given)
                await asyncio.sleep(0.1)
                await servers[0].stop()
                await servers[1].stop()
                await asyncio.sleep(0.3)
                before = len(servers[0].asked)
                await servers[0].start(int(servers[0].url.rpartition(":")[2]))
                await asyncio.wait_for(ledger.all.wait(), 30)
            assert good(ledger) and set(ledger.times.values()) == {1} and len(ledger.results) == 400
            assert len(servers[0].asked) > before
            assert len(servers[2].asked) > 50

    asyncio.run(main())


def test_when_all_are_gone_it_ends_and_says_so() -> None:
    async def main() -> None:
        options = ClientOptions(patience_s=1.0, backoff_s=0.02, connect_timeout_s=1)
        async with stubs(None, None) as servers:
            for stub in servers:
                await stub.stop()
            began = time.monotonic()
            ledger, _ = await finish(servers, jobs(20), options)
            assert time.monotonic() - began < 10
            for result in ledger.results.values():
                assert "no server has answered for 1 s" in str(result)
                assert "127.0.0.1" not in str(result)

    asyncio.run(main())


def test_servers_may_come_late() -> None:
    """They are waited for as long as patience lasts."""

    async def main() -> None:
        async with stubs(None) as servers:
            port = int(servers[0].url.rpartition(":")[2])
            await servers[0].stop()
            later = asyncio.get_running_loop().call_later(
                1.0, lambda: asyncio.ensure_future(servers[0].start(port))
            )
            ledger, _ = await finish(servers, jobs(20))
            later.cancel()
            assert good(ledger)

    asyncio.run(main())


def test_a_sample_that_every_server_fails_is_given_up() -> None:
    """And no other with it."""

    async def poison(stub: Stub, body: dict[str, Any]) -> Any:
        return await status(500)(stub, body) if 7 in body["token_ids"] else None

    async def main() -> None:
        options = ClientOptions(backoff_s=0.01, max_attempts=4)
        async with stubs(poison, poison) as servers:
            ledger, _ = await finish(servers, jobs(30), options)
            bad = {name for name, one in ledger.results.items() if isinstance(one, Exception)}
            assert bad == {3}
            assert "4 requests failed" in str(ledger.results[3])
            assert "status 500" in str(ledger.results[3])

    asyncio.run(main())


def test_what_a_server_refuses_is_not_tried_again() -> None:
    async def refuse(stub: Stub, body: dict[str, Any]) -> Any:
        return await status(400)(stub, body) if 7 in body["token_ids"] else None

    async def main() -> None:
        async with stubs(refuse) as servers:
            ledger, client = await finish(servers, jobs(10))
            assert isinstance(ledger.results[3], Refused) and "the stub says no" in str(
                ledger.results[3]
            )
            assert client.stats.retries == 0 and len(servers[0].asked) == 10

    asyncio.run(main())


def test_servers_join_and_leave() -> None:
    async def main() -> None:
        async with stubs(delay(0.02), delay(0.02)) as servers:
            first, second = (ServerAddress(f"server {i}", s.url) for i, s in enumerate(servers))
            ledger = Ledger()
            ledger.wanted = 120
            async with RolloutClient([first], QUICK, ledger.done) as client:
                client.submit(jobs(120))
                await asyncio.sleep(0.05)
                client.set_servers([first, second])
                await asyncio.sleep(0.1)
                client.set_servers([second])
                await asyncio.sleep(0.05)
                before = len(servers[0].asked)
                await asyncio.wait_for(ledger.all.wait(), 20)
            assert good(ledger) and set(ledger.times.values()) == {1}
            assert len(servers[0].asked) == before and len(servers[1].asked) > 20

    asyncio.run(main())


def test_aborted_samples_are_never_heard_of() -> None:
    async def main() -> None:
        async with stubs(delay(0.05)) as servers:
            ledger = Ledger()
            address = ServerAddress("server 0", servers[0].url)
            async with RolloutClient([address], QUICK, ledger.done) as client:
                client.submit(jobs(40))
                await asyncio.sleep(0.02)
                client.abort(range(0, 40, 2))
                ledger.wanted = 20
                await asyncio.wait_for(ledger.all.wait(), 10)
                await asyncio.sleep(0.2)
            assert sorted(ledger.results) == list(range(1, 40, 2))  # type: ignore[type-var]
            assert len(servers[0].cancelled) > 0

    asyncio.run(main())


def test_the_key_rides_on_every_request() -> None:
    async def main() -> None:
        async with stubs(None) as servers:
            ledger = Ledger()
            ledger.wanted = 3
            address = ServerAddress("server 0", servers[0].url, "secret")
            async with RolloutClient([address], QUICK, ledger.done) as client:
                client.submit(jobs(3))
                await asyncio.wait_for(ledger.all.wait(), 10)
            assert {h["Authorization"] for h in servers[0].headers} == {"Bearer secret"}
            assert "secret" not in repr(address) and servers[0].url not in repr(address)

    asyncio.run(main())


@pytest.mark.slow
def test_a_soak_of_random_faults_keeps_the_ledger() -> None:
    """Three servers that die, hang, slow down and lie, in turn: each sample once, all the same."""
    dice = random.Random(11)

    async def moody(stub: Stub, body: dict[str, Any]) -> Any:
        roll = dice.random()
        if roll < 0.05:
            return await status(502)(stub, body)
        if roll < 0.08:
            return await cut_off(stub, body)
        if roll < 0.11:
            return await reset(stub, body)
        await asyncio.sleep(30 if roll < 0.115 else 0.01)
        return None

    async def kill(servers: list[Stub]) -> None:
        while True:
            await asyncio.sleep(0.4)
            victim = dice.choice(servers)
            await victim.restart()

    async def main() -> None:
        options = ClientOptions(
            max_in_flight=32, timeout_s=1.5, backoff_s=0.01, patience_s=20, max_attempts=20
        )
        async with stubs(moody, moody, moody) as servers:
            killer = asyncio.create_task(kill(servers))
            ledger, client = await finish(servers, jobs(3000, prompts=300), options, 120)
            killer.cancel()
            assert good(ledger) and client.stats.answered == 3000
            assert client.stats.retries > 100

    asyncio.run(main())

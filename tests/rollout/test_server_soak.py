"""Many steps on servers that are killed at random: the ledger is that of an undisturbed run.

Shown: each step's samples come once, with the tokens that an undisturbed server would have given,
made by that step's weights alone: a server that was restarted has none, and is not believed before
it was given some.
"""

from __future__ import annotations

import asyncio
import random
import threading
from typing import Any

import pytest
from stub_server import Stub, cut_off, reset, stubs_beside, tokens_of

from megarl.errors import RunError
from megarl.rollout.engine import generate
from megarl.rollout.servers.address import ServerAddress
from megarl.rollout.servers.client import ClientOptions
from megarl.rollout.servers.engine import ServerEngine
from megarl.rollout.servers.pool import NamedServers
from megarl.types import Prompt, RolloutRequest, SamplingSpec

OPTIONS = ClientOptions(
    max_in_flight=32, timeout_s=2, connect_timeout_s=2, backoff_s=0.005, patience_s=3
)
SAMPLING = SamplingSpec(max_response_length=5)
Ledger = list[tuple[int, int, tuple[int, ...], int]]
"""(step, row, tokens, version of the weights)."""


def requests(step: int, count: int = 24) -> list[RolloutRequest]:
    prompts = [Prompt(group, (2, step, group + 5), "", "", "") for group in range(count // 4)]
    return [RolloutRequest(row, row // 4, prompts[row // 4], 9 * row) for row in range(count)]


def undisturbed(steps: int) -> Ledger:
    found = []
    for step in range(1, steps + 1):
        for one in requests(step):
            params = {"max_tokens": 5, "seed": one.seed}
            body = {"token_ids": list(one.prompt.token_ids), "sampling_params": params}
            found.append((step, one.row, tuple(tokens_of(body)), step))
    return found


def make_engine(servers: list[Stub]) -> tuple[ServerEngine, list[ServerAddress]]:
    engine = ServerEngine(NamedServers([stub.url for stub in servers]), OPTIONS, str)
    return engine, engine.source.known()


def sync(engine: ServerEngine, servers: list[Stub], addresses: Any, version: int) -> None:
    """All servers have these weights now."""
    for stub in servers:
        stub.version = f"ours.{version}"
    engine.weights_are(version, addresses, {f"ours.{version}": version})


def soak(steps: int, seed: int) -> tuple[Ledger, dict[str, float]]:
    dice = random.Random(seed)

    async def moody(stub: Stub, body: dict[str, Any]) -> Any:
        roll = dice.random()
        if roll < 0.02:
            return await cut_off(stub, body)
        if roll < 0.04:
            return await reset(stub, body)
        await asyncio.sleep(0.004)
        return None

    ledger: Ledger = []
    totals: dict[str, float] = {}
    with stubs_beside(moody, moody, moody) as servers:
        engine, addresses = make_engine(servers)
        for step in range(1, steps + 1):
            sync(engine, servers, addresses, step)
            victims = dice.sample(servers, dice.choice([0, 0, 1, 2]))

            def kill(victims: list[Stub] = victims, pause: float = dice.uniform(0, 0.02)) -> None:
                for victim in victims:
                    threading.Event().wait(pause)
                    victim.version = "as it was started"
                    victim.do(victim.restart())

            killer = threading.Thread(target=kill)
            killer.start()
            done = generate(engine, [(requests(step), SAMPLING)])
            killer.join()
            ledger += [(step, r.request.row, r.response_ids, r.weight_version) for r in done]
            for name, value in engine.take_metrics().items():
                totals[name] = totals.get(name, 0.0) + value
        engine.close()
    return ledger, totals


@pytest.mark.parametrize(
    "steps",
    [pytest.param(30, marks=pytest.mark.slow), pytest.param(1000, marks=pytest.mark.long)],
)
def test_the_ledger_of_a_soak(steps: int) -> None:
    ledger, totals = soak(steps, seed=steps)
    assert ledger == undisturbed(steps)
    assert totals["rollout/retries"] > steps / 3


def test_a_server_with_other_weights_is_not_believed() -> None:
    """Started anew, or given weights by somebody else; others take over until the next sync."""
    with stubs_beside(None, None) as servers:
        engine, addresses = make_engine(servers)
        sync(engine, servers, addresses, 1)
        servers[0].version = "theirs.1"
        done = generate(engine, [(requests(1), SAMPLING)])
        assert [r.response_ids for r in done] == [tokens for _, _, tokens, _ in undisturbed(1)]
        assert 0 < len(servers[0].asked) < 24  # what was on its way when that was seen
        asked = len(servers[0].asked)
        generate(engine, [(requests(2), SAMPLING)])
        assert len(servers[0].asked) == asked
        sync(engine, servers, addresses, 2)
        generate(engine, [(requests(3), SAMPLING)])
        assert len(servers[0].asked) > asked
        engine.close()


def test_nobody_has_the_weights() -> None:
    with stubs_beside(None) as servers:
        engine, addresses = make_engine(servers)
        sync(engine, servers, addresses, 1)
        servers[0].version = "theirs.1"
        text = "(?s)no server answered.*server 0: its weights are not those of the last sync"
        with pytest.raises(RunError, match=text) as caught:
            generate(engine, [(requests(1), SAMPLING)])
        assert servers[0].url not in str(caught.value)
        engine.close()


def test_weights_that_come_while_samples_are_under_way() -> None:
    """They were announced: what goes on with them is believed before the sync has ended."""

    async def slow(stub: Stub, body: dict[str, Any]) -> None:
        await asyncio.sleep(0.2)

    with stubs_beside(slow) as servers:
        engine, addresses = make_engine(servers)
        engine.weights_come(1, "ours.1")
        with pytest.raises(RunError, match="before the weight sync committed"):
            engine.submit(requests(1), SAMPLING)
        sync(engine, servers, addresses, 1)
        engine.submit(requests(1), SAMPLING)
        engine.weights_come(2, "ours.2")
        servers[0].version = "ours.2"
        done = []
        while engine.step():
            done += engine.poll()
        done += engine.poll()
        assert {r.weight_version for r in done} == {2} and len(done) == 24
        assert engine.take_metrics()["rollout/retries"] == 0
        engine.close()

"""Episodes of several turns on an engine in plain Python: every token is where it belongs.

Shown: contexts are the tokens that were made and read, never tokenized again; what the environment
said is marked; budgets, time-outs and failures; thousands at once, slow ones beside fast ones.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from megarl.environments.base import Reply
from megarl.environments.episodes import EpisodeEngine, EpisodeSettings
from megarl.environments.guessing import GuessingGame
from megarl.errors import RunError
from megarl.rollout.engine import generate
from megarl.types import Prompt, Rollout, RolloutRequest, SamplingSpec

SAMPLING = SamplingSpec(max_response_length=40)
Answer = Callable[[RolloutRequest], list[int]]


class FakeEngine:
    """Answers by a function of the request, a few a step."""

    def __init__(self, answer: Answer, seed: int = 0) -> None:
        self.answer, self.dice = answer, random.Random(seed)
        self.running: dict[int, tuple[RolloutRequest, int]] = {}
        self.done: list[Rollout] = []
        self.asked: list[tuple[RolloutRequest, int]] = []
        self.version = 3

    def submit(
        self, requests: Sequence[RolloutRequest], sampling: SamplingSpec, *, more: bool = False
    ) -> None:
        assert more
        for request in requests:
            assert request.row not in self.running and sampling.max_response_length > 0
            self.running[request.row] = request, sampling.max_response_length
            self.asked.append((request, sampling.max_response_length))

    def step(self) -> bool:
        rows = list(self.running)
        for row in self.dice.sample(rows, -(-len(rows) // 2)):
            request, limit = self.running.pop(row)
            tokens = tuple(self.answer(request))[:limit]
            logprobs = tuple(-0.01 * token for token in tokens)
            reason = "stop" if tokens and tokens[-1] == 1 else "length"
            text = " ".join(str(token) for token in tokens if token > 1)
            self.done.append(Rollout(request, tokens, logprobs, text, reason, self.version))
        return bool(self.running)

    def look(self) -> None: ...

    def wake(self) -> None: ...

    def poll(self) -> list[Rollout]:
        done, self.done = self.done, []
        return done

    def abort(self, rows: Sequence[int] | None = None) -> None:
        for row in list(self.running) if rows is None else rows:
            self.running.pop(row, None)


class Echo:
    """Three turns; says how many characters it heard, and is worth one a turn."""

    def __init__(self, begins: str = "", turns: int = 3) -> None:
        self.begins, self.turns, self.heard = begins, turns, list[str]()

    def reset(self, prompt: Prompt, seed: int) -> str:
        return self.begins

    def step(self, text: str) -> Reply:
        self.heard.append(text)
        return Reply(f"heard {len(text)}", 1.0, done=len(self.heard) == self.turns)


def encode(text: str) -> list[int]:
    return [100 + ord(character) % 50 for character in text]


def settings(make: Callable[[], Any], **options: Any) -> EpisodeSettings:
    return EpisodeSettings(make, encode, "echo", **options)


def requests(count: int) -> list[RolloutRequest]:
    return [RolloutRequest(r, r, Prompt(r, (7, r + 2), "", "", ""), 50 + r) for r in range(count)]


def play(
    engine: FakeEngine, made: EpisodeSettings, count: int = 5, sampling: SamplingSpec = SAMPLING
) -> list[Rollout]:
    with EpisodeEngine(engine, made) as episodes:
        found = generate(episodes, [(requests(count), sampling)])
    assert [one.request for one in found] == requests(count)
    return found


def ragged(request: RolloutRequest) -> list[int]:
    """1 to 4 tokens and an end, by the seed."""
    dice = random.Random(request.seed)
    return [dice.randrange(2, 60) for _ in range(dice.randrange(1, 5))] + [1]


@pytest.mark.parametrize("begins", ["", "begin"])
def test_every_token_is_where_it_belongs(begins: str) -> None:
    engine = FakeEngine(ragged)
    for one in play(engine, settings(lambda: Echo(begins))):
        turns = [r for r, _ in engine.asked if r.row == one.request.row]
        assert len(turns) == 3 and len({turn.seed for turn in turns}) == 3
        context, said = list(one.request.prompt.token_ids), list[bool]()
        if begins:
            context += encode(begins)
            said += [False] * len(begins)
        for index, turn in enumerate(turns):
            assert list(turn.prompt.token_ids) == context
            tokens = ragged(turn)
            context += tokens
            said += [True] * len(tokens)
            if index < 2:
                heard = encode(f"heard {len(' '.join(str(t) for t in tokens if t > 1))}")
                context += heard
                said += [False] * len(heard)
        assert list(one.response_ids) == context[2:] and list(one.learned) == said
        expected = [-0.01 * t if mine else 0.0 for t, mine in zip(context[2:], said, strict=True)]
        assert list(one.logprobs) == expected
        assert one.reward == 3.0 and one.finish_reason == "stop" and one.weight_version == 3
    limits = {len(r.prompt.token_ids) + limit for r, limit in engine.asked}
    assert limits == {2 + SAMPLING.max_response_length}


def test_weights_that_change_between_turns() -> None:
    """The environment's tokens go with the turn before them."""
    engine = FakeEngine(lambda request: [5, 6, 1])
    step = engine.step

    def later() -> bool:
        more = step()
        engine.version += 1
        return more

    engine.step = later  # type: ignore[method-assign]
    (one,) = play(engine, settings(lambda: Echo("b", turns=2)), 1)
    assert one.versions == ((3, 1 + 3 + len("heard 3")), (4, 3)) and one.weight_version == 3
    assert sum(count for _, count in one.versions) == len(one.response_ids)


def test_an_answer_of_one_turn_is_as_without_an_environment() -> None:
    (one,) = play(FakeEngine(ragged), settings(lambda: Echo(turns=1)), 1)
    assert one.learned == () and one.versions == () and one.finish_reason == "stop"


def test_budgets() -> None:
    """Of turns, and of tokens: what does not fit is not read."""
    found = play(FakeEngine(ragged), settings(lambda: Echo(turns=99), max_turns=2))
    assert all(one.finish_reason == "length" and one.reward == 2.0 for one in found)
    assert all(one.learned[-1] for one in found)
    short = SamplingSpec(max_response_length=11)
    found = play(FakeEngine(lambda r: [9, 9, 9, 1]), settings(lambda: Echo(turns=99)), 3, short)
    assert all(len(one.response_ids) == 4 and one.finish_reason == "length" for one in found)
    found = play(FakeEngine(lambda r: [9] * 99), settings(lambda: Echo(turns=99)), 3, short)
    assert all(len(one.response_ids) == 11 and one.reward == 1.0 for one in found)


def test_slow_ones_beside_fast_ones() -> None:
    """2,000 at once, of which some think for half a second: all of that at the same time."""

    class Thinker(Echo):
        def step(self, text: str) -> Reply:
            time.sleep(0.5 if len(text) % 97 == 0 else 0.0)
            return super().step(text)

    began = time.monotonic()
    found = play(FakeEngine(ragged), settings(Thinker, workers=64), 2000)
    assert len(found) == 2000 and all(one.reward == 3.0 for one in found)
    assert time.monotonic() - began < 30


def test_one_that_hangs_ends_its_episode() -> None:
    class Hangs(Echo):
        def step(self, text: str) -> Reply:
            if len(self.heard) == 1 and "13" in text:
                time.sleep(3)
            return super().step(text)

    answers = FakeEngine(lambda request: [13 if request.row == 2 else 9, 1])
    began = time.monotonic()
    with EpisodeEngine(answers, settings(Hangs, turn_timeout_s=0.3)) as episodes:
        found = generate(episodes, [(requests(5), SAMPLING)])
        assert time.monotonic() - began < 2 and episodes.timeouts == 1
    assert [one.reward for one in found] == [3.0, 3.0, 1.0, 3.0, 3.0]
    assert [one.finish_reason for one in found] == ["stop", "stop", "length", "stop", "stop"]


@pytest.mark.parametrize("where", ["reset", "step"])
def test_one_that_fails_is_named(where: str) -> None:
    class Fails(Echo):
        def reset(self, prompt: Prompt, seed: int) -> str:
            if where == "reset" and prompt.prompt_id == 3:
                raise ValueError("no board")
            return ""

        def step(self, text: str) -> Reply:
            if where == "step" and "13" in text:
                raise ValueError("no board")
            return super().step(text)

    answers = FakeEngine(lambda request: [13 if request.row == 3 else 9, 1])
    turn = 0 if where == "reset" else 1
    text = (
        rf"environment echo failed on sample 3 \(prompt_id 3\), turn {turn}: ValueError: no board"
    )
    with pytest.raises(RunError, match=text):
        play(answers, settings(Fails))
    assert answers.running == {}


def test_one_that_does_not_begin_is_named() -> None:
    class Sleeps(Echo):
        def reset(self, prompt: Prompt, seed: int) -> str:
            time.sleep(2)
            return ""

    text = "environment echo did not begin within turn_timeout_s 0.2 on sample 0"
    with pytest.raises(RunError, match=text):
        play(FakeEngine(ragged), settings(Sleeps, turn_timeout_s=0.2), 1)


def test_dropped_episodes_never_come_out() -> None:
    engine = FakeEngine(ragged)
    with EpisodeEngine(engine, settings(Echo)) as episodes:
        episodes.submit(requests(6), SAMPLING, more=True)
        episodes.step()
        episodes.abort([1, 4])
        rows = []
        while episodes.step():
            rows += [one.request.row for one in episodes.poll()]
        rows += [one.request.row for one in episodes.poll()]
        assert sorted(rows) == [0, 2, 3, 5]
        episodes.submit(requests(6), SAMPLING, more=True)
        episodes.abort()
        assert episodes.step() is False and episodes.poll() == []


def test_the_guessing_game() -> None:
    game = GuessingGame(high=9, cost=0.25)
    assert game.reset(Prompt(0, (1,), "", "6", ""), 5) == ""
    assert game.step("4") == Reply(" <") and game.step("is it 8?") == Reply(" >")
    assert game.step("6") == Reply("", 0.5, done=True)
    assert GuessingGame().step("none") == Reply("", -0.1, done=True)
    assert GuessingGame().step("10") == Reply("", -0.1, done=True)
    numbers = set()
    for seed in range(200):
        game.reset(Prompt(0, (1,), "", "", ""), seed)
        numbers.add(game._number)
    assert numbers == set(range(10))
    with pytest.raises(ValueError, match="low 3 is not below high 3"):
        GuessingGame(low=3, high=3)

"""Samples that are made ahead of their step: each place of the data's order is taken once.

Against a lane in plain Python that answers in any order, as slowly as a seed says.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest

from megarl.data.order import PromptOrder
from megarl.data.seeds import step_seeds
from megarl.train.ahead import Ahead, Pace, idle_metrics, staleness_metrics
from megarl.types import Prompt, Rollout, RolloutRequest, SamplingSpec

PROMPTS = [Prompt(i, (i,), "", "", "") for i in range(10)]


class FakeLane:
    """Answers a few requests a step, by chance; some take several syncs."""

    def __init__(self, seed: int = 0, *, slow: float = 0.0) -> None:
        self.dice, self.slow = random.Random(seed), slow
        self.running: dict[int, tuple[RolloutRequest, int]] = {}
        self.done: list[Rollout] = []
        self.version = 1
        self.asked: list[RolloutRequest] = []

    def submit(self, requests: Sequence[RolloutRequest], sampling: Any, *, more: bool) -> None:
        assert more
        for request in requests:
            assert request.row not in self.running
            self.running[request.row] = request, self.version
            self.asked.append(request)

    def step(self) -> bool:
        if not self.running:
            return False
        rows = list(self.running)
        for row in self.dice.sample(rows, min(3, len(rows))):
            if self.dice.random() >= self.slow:
                self._finish(row)
        return True

    def look(self) -> None:
        """While the trainer learned."""
        for row in list(self.running):
            if self.dice.random() < 0.3:
                self._finish(row)

    def poll(self) -> list[Rollout]:
        done, self.done = self.done, []
        return done

    def abort(self) -> None:
        self.running.clear()
        self.done.clear()

    def _finish(self, row: int) -> None:
        request, begun = self.running.pop(row)
        spans = tuple((version, 2) for version in range(begun, self.version + 1))
        tokens = (1,) * (2 * len(spans))
        self.done.append(Rollout(request, tokens, (0.0,) * len(tokens), "", "stop", begun, spans))


def make(lane: Any, *, staleness: int = 1, steps: int = 12, batch: int = 4) -> Ahead:
    pace = Pace(batch, num_samples=3, max_staleness=staleness, steps=steps, seed=7)
    return Ahead(pace, PROMPTS, PromptOrder(10, batch, 5), SamplingSpec(), lane)


def run(ahead: Ahead, lane: FakeLane, steps: range) -> list[dict[int, list[Rollout]]]:
    """Steps with a sync after each."""
    found = []
    for step in steps:
        lane.version = step + 1
        heard: list[Rollout] = []
        taken = ahead.collect(step, step + 1, heard.extend)
        assert sorted(r.request.row for r in heard) == sorted(
            r.request.row for group in taken.values() for r in group
        )
        ahead.take(sorted(taken))
        found.append(taken)
    return found


@pytest.mark.parametrize("staleness", [1, 2, 5])
def test_each_place_is_taken_once(staleness: int) -> None:
    lane = FakeLane(staleness)
    ahead = make(lane, staleness=staleness)
    found = run(ahead, lane, range(12))
    places = [place for taken in found for place in taken]
    assert sorted(places) == list(range(48))  # nothing that no step takes was asked for
    assert {request.group for request in lane.asked} == set(range(48))
    for step, taken in enumerate(found):
        assert len(taken) == 4 and all(place < (step + 1 + staleness) * 4 for place in taken)
        for place, group in taken.items():
            assert [r.request.row for r in group] == [3 * place + i for i in range(3)]
            assert all(r.request.prompt == ahead.prompt_at(place) for r in group)
            assert all(step + 1 - r.weight_version <= staleness for r in group)


def test_seeds_are_those_of_a_run_that_waits() -> None:
    lane = FakeLane()
    run(make(lane), lane, range(12))
    order = PromptOrder(10, 4, 5)
    expected = {}
    for step in range(12):
        ids = [PROMPTS[row].prompt_id for row in order.next()]
        for index, seeds in enumerate(step_seeds(7, step, ids, 3)):
            for number, seed in enumerate(seeds):
                expected[3 * (4 * step + index) + number] = seed
    first = {request.row: request.seed for request in reversed(lane.asked)}
    assert first == expected


def test_what_is_too_old_is_made_again() -> None:
    """From other seeds, and counted; nothing is lost by it."""
    lane = FakeLane(3, slow=0.6)
    ahead = make(lane, steps=40)
    found = run(ahead, lane, range(40))
    assert sorted(place for taken in found for place in taken) == list(range(160))
    assert ahead.dropped > 0 and len(lane.asked) == 3 * (160 + ahead.dropped)
    assert len({request.seed for request in lane.asked}) == len(lane.asked)
    for step, taken in enumerate(found):
        lags = [step + 1 - r.weight_version for group in taken.values() for r in group]
        assert max(lags) <= 1


def test_a_long_answer_keeps_nobody_waiting() -> None:
    lane = FakeLane(1)
    ahead = make(lane, staleness=3)
    finish = lane._finish
    lane._finish = lambda row: finish(row) if row != 0 or lane.version > 3 else None  # type: ignore
    found = run(ahead, lane, range(5))
    assert [step for step, taken in enumerate(found) if 0 in taken] in ([3], [4], [])
    assert all(len(taken) == 4 for taken in found)


def test_a_resumed_run_takes_what_is_open() -> None:
    lane = FakeLane(9)
    ahead = make(lane, staleness=2)
    before = run(ahead, lane, range(5))
    again_lane = FakeLane(11)
    again = make(again_lane, staleness=2)
    again.load_state_dict(ahead.state_dict(), 20)
    after = run(again, again_lane, range(5, 12))
    places = [place for taken in before + after for place in taken]
    assert sorted(places) == list(range(48))


def test_a_run_that_waited_may_go_on_ahead() -> None:
    lane = FakeLane()
    ahead = make(lane)
    ahead.load_state_dict(None, 20)
    found = run(ahead, lane, range(5, 12))
    assert sorted(place for taken in found for place in taken) == list(range(20, 48))


def test_the_other_ranks_follow() -> None:
    """They know the places only."""
    lane = FakeLane(4)
    ahead, other = make(lane), make(None)
    for taken in run(ahead, lane, range(6)):
        other.take(sorted(taken))
    other.dropped = ahead.dropped
    assert other.state_dict() == ahead.state_dict()


def test_staleness_is_counted_by_token() -> None:
    def rollout(*spans: tuple[int, int]) -> Rollout:
        tokens = (1,) * sum(count for _, count in spans)
        request = RolloutRequest(0, 0, PROMPTS[0], 0)
        kept = spans if len(spans) > 1 else ()
        return Rollout(request, tokens, (0.0,) * len(tokens), "", "stop", spans[0][0], kept)

    found = staleness_metrics([[rollout((5, 6))], [rollout((3, 1), (4, 2), (5, 1))]], 5)
    assert found == {
        "async/staleness_mean": (2 + 2) / 10,
        "async/staleness_max": 2.0,
        "async/samples_of_several_weights": 1.0,
        "async/staleness/0": 0.7,
        "async/staleness/1": 0.2,
        "async/staleness/2": 0.1,
    }


def test_idle_times() -> None:
    """A step of 10 s in which the trainer waited for 2 and servers had nothing to do for 3."""
    given = {"timing_s/step": 10.0, "timing_s/generate": 2.0, "rollout/idle_s": 3.0}
    found = idle_metrics(given)
    assert found["async/trainer_idle_s"] == 2.0 and found["async/rollout_idle_s"] == 3.0
    assert found["async/gain"] == pytest.approx(1.5)  # 8 s of learning and 7 of generating in 10

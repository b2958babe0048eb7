"""Rewards that are computed while other samples are still being generated."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

import pytest

from megarl.errors import RunError
from megarl.rewards.base import StepRewards
from megarl.rewards.judging import Judging, WeightedReward
from megarl.types import Prompt, Rollout, RolloutRequest


def rollout(row: int, text: str = "") -> Rollout:
    """One finished sample of a row."""
    prompt = Prompt(row, (5,), "p", "", "s")
    return Rollout(RolloutRequest(row, row, prompt, 0), (7,), (0.0,), text, "stop", 1)


def lengths(prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float]:
    """Characters."""
    return [float(len(text)) for text in responses]


@pytest.mark.parametrize("overlap", [True, False])
def test_each_row_has_what_each_function_said(overlap: bool) -> None:
    def ids(prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float]:
        return [float(prompt.prompt_id) for prompt in prompts]

    functions = [WeightedReward("length", lengths, 1.0), WeightedReward("id", ids, 2.0)]
    with Judging(functions, overlap=overlap) as judging:
        judging.add([rollout(3, "abc"), rollout(1, "a")])
        judging.add([rollout(2, "ab")])
        found = judging.finish()
    assert found == {3: (3.0, 3.0), 1: (1.0, 1.0), 2: (2.0, 2.0)}


def test_nothing_to_say_of_nothing() -> None:
    with Judging([WeightedReward("length", lengths, 1.0)]) as judging:
        assert judging.finish() == {}
    with Judging([]) as judging:  # a reward model alone
        judging.add([rollout(4)])
        assert judging.finish() == {4: ()}


def test_it_scores_before_all_has_come() -> None:
    """The first sample is scored, in another thread, while the second is still to come."""
    seen, threads = threading.Event(), set()

    def reward(prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float]:
        threads.add(threading.current_thread())
        seen.set()
        return lengths(prompts, responses)

    with Judging([WeightedReward("slow", reward, 1.0)]) as judging:
        judging.add([rollout(0, "a")])
        assert seen.wait(timeout=20)
        judging.add([rollout(1, "ab")])
        assert judging.finish() == {0: (1.0,), 1: (2.0,)}
    assert threading.main_thread() not in threads


def test_what_comes_during_a_call_goes_into_the_next_one() -> None:
    """Three calls for forty samples: a slow service is not asked for each alone."""
    sizes, go = [], threading.Event()

    def reward(prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float]:
        sizes.append(len(prompts))
        assert go.wait(timeout=20)
        return lengths(prompts, responses)

    with Judging([WeightedReward("slow", reward, 1.0)]) as judging:
        judging.add([rollout(0)])
        while not sizes:
            time.sleep(0.001)
        for row in range(1, 40):
            judging.add([rollout(row)])
        go.set()
        assert len(judging.finish()) == 40
    assert sizes == [1, 39]


@pytest.mark.parametrize("overlap", [True, False])
def test_a_failure_is_raised_at_the_end_with_its_sample(overlap: bool) -> None:
    def reward(prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float]:
        if "bad" in responses:
            raise ValueError("no")
        return lengths(prompts, responses)

    with Judging([WeightedReward("own", reward, 1.0)], overlap=overlap) as judging:
        judging.add([rollout(0, "good")])
        judging.add([rollout(7, "bad")])
        judging.add([rollout(8, "good")])
        with pytest.raises(RunError, match=r"reward own raised ValueError on row 7 .*no"):
            judging.finish()


def test_a_function_that_wants_the_main_thread_is_told_how() -> None:
    """As those that use signal.alarm do."""
    import signal

    def reward(prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float]:
        before = signal.signal(signal.SIGUSR2, signal.SIG_IGN)
        signal.signal(signal.SIGUSR2, before)
        return lengths(prompts, responses)

    given = [WeightedReward("alarmed", reward, 1.0)]
    with Judging(given) as judging:
        judging.add([rollout(0)])
        with pytest.raises(RunError, match="main thread.*reward.overlap=false"):
            judging.finish()
    with Judging(given, overlap=False) as judging:
        judging.add([rollout(0, "ab")])
        assert judging.finish() == {0: (2.0,)}


def test_a_failing_generation_waits_for_no_reward() -> None:
    """What hangs in a reward does not keep the run from saying what went wrong elsewhere."""
    hold = threading.Event()

    def reward(prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float]:
        hold.wait(timeout=60)
        return lengths(prompts, responses)

    started = time.monotonic()
    with (
        pytest.raises(KeyError),
        Judging([WeightedReward("hangs", reward, 1.0)]) as judging,
    ):
        judging.add([rollout(0)])
        raise KeyError("the engine")
    assert time.monotonic() - started < 10
    hold.set()


STEPS = {
    "past the end": ([(9, 1.0)], r"ends at character 4 after 9, of 4"),
    "falling": ([(3, 1.0), (2, 1.0)], r"ends at character 2 after 3"),
    "not a number": ([(2, float("nan"))], r"gave nan"),
}


@pytest.mark.parametrize(("steps", "message"), STEPS.values(), ids=STEPS.keys())
def test_steps_that_cannot_be(steps: list[tuple[int, float]], message: str) -> None:
    def reward(prompts: Sequence[Prompt], responses: Sequence[str]) -> list[StepRewards]:
        return [StepRewards(steps)]

    with Judging([WeightedReward("prm", reward, 1.0)], overlap=False) as judging:
        judging.add([rollout(0, "abcd")])
        with pytest.raises(RunError, match=message):
            judging.finish()


def test_numbers_and_steps_do_not_mix() -> None:
    def reward(prompts: Sequence[Prompt], responses: Sequence[str]) -> list[object]:
        return [StepRewards([(1, 0.5)]), 1.0]

    given = [WeightedReward("prm", reward, 1.0)]  # type: ignore[arg-type]
    with Judging(given, overlap=False) as judging:
        judging.add([rollout(0, "ab"), rollout(1, "ab")])
        with pytest.raises(RunError, match="StepRewards for others"):
            judging.finish()


def test_whatever_goes_wrong_is_raised_by_finish(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also what no guard knows: it is never an answer that is missing."""

    def broken(*given: object) -> list[float]:
        raise MemoryError("no room")

    monkeypatch.setattr("megarl.rewards.judging.score", broken)
    with Judging([WeightedReward("own", lengths, 1.0)]) as judging:
        judging.add([rollout(0)])
        with pytest.raises(MemoryError, match="no room"):
            judging.finish()

"""The guard: whatever a user's reward does wrong becomes an error that names it and the sample."""

from __future__ import annotations

import pytest
import torch

from megarl.errors import RunError
from megarl.rewards.base import StepRewards, read_answers, score
from megarl.types import Prompt, Rollout, RolloutRequest


def rollouts(*texts):
    return [
        Rollout(
            RolloutRequest(10 + i, 0, Prompt(70 + i, (1,), "q", "a", "sums"), seed=0),
            (1,), (-0.5,), text, "stop", 0,
        )
        for i, text in enumerate(texts)
    ]  # fmt: skip


def test_scores_come_back_as_floats_in_order():
    def lengths(prompts, responses):
        assert [prompt.prompt_id for prompt in prompts] == [70, 71]
        return torch.tensor([float(len(r)) for r in responses])

    got = score(lengths, "lengths", rollouts("abc", ""))
    assert got == [3.0, 0.0] and all(type(value) is float for value in got)
    assert score(lambda p, r: [True, 0], "bools", rollouts("a", "b")) == [1.0, 0.0]


def test_a_generator_is_read_inside_the_guard():
    def lazily(prompts, responses):
        yield 1.0
        raise KeyError("the second")

    assert score(lambda p, r: (1.0 for _ in r), "own", rollouts("a", "b")) == [1.0, 1.0]
    with pytest.raises(RunError, match="reward own raised KeyError on rows 10 to 11.*the second"):
        score(lazily, "own", rollouts("a", "b"))


@pytest.mark.parametrize("steps", [[("two", 1.0)], [(None, 1.0)], [(1,)], 3])
def test_steps_that_are_no_pairs_name_the_sample(steps):
    with pytest.raises(RunError, match=r"reward own gave steps .* for row 10 .*\(characters up to"):
        score(lambda p, r: [StepRewards(steps)], "own", rollouts("abc"))


def test_our_own_errors_are_not_looked_for_again():
    """A service that is down is not asked for each sample, which would take as long again."""
    calls = []

    def down(prompts, responses):
        calls.append(len(prompts))
        raise RunError("it gave no answer in 6 tries")

    with pytest.raises(RunError, match="rows 10 to 12 .*gave no answer in 6 tries"):
        score(down, "http", rollouts("a", "b", "c"))
    assert calls == [3]


def test_nothing_to_score_calls_nobody():
    assert score(lambda p, r: 1 / 0, "never", []) == []


@pytest.mark.parametrize(
    "value", [float("nan"), float("inf"), None, "high", "0.5", [1, 2], 10**400, 1e31]
)
def test_a_score_that_is_no_finite_number_names_the_sample(value):
    with pytest.raises(
        RunError, match=r"reward own gave .* for row 11 \(prompt_id 71, source 'sums'\).*'second'"
    ):
        score(lambda p, r: [1.0, value], "own", rollouts("first", "second"))


def test_a_wrong_number_of_scores_is_named():
    with pytest.raises(RunError, match="reward own returned 1 scores for 2 responses"):
        score(lambda p, r: [1.0], "own", rollouts("a", "b"))
    with pytest.raises(RunError, match=r"reward own returned 1.0 .*rows 10 to 11.*one number per"):
        score(lambda p, r: 1.0, "own", rollouts("a", "b"))


def test_what_the_function_raised_is_the_cause():
    def broken(prompts, responses):
        raise KeyError("answer")

    with pytest.raises(RunError, match="raised KeyError on row 10 .*70.*sums") as caught:
        score(broken, "own", rollouts("a"))
    assert isinstance(caught.value.__cause__, KeyError)


def test_the_sample_that_made_it_raise_is_named():
    def picky(prompts, responses):
        return [1.0 / len(response) for response in responses]

    words = "raised ZeroDivisionError on row 12 .*prompt_id 72"
    with pytest.raises(RunError, match=words):
        score(picky, "own", rollouts("a", "b", "", "c"))


class Reading:
    """Calls the first letter the answer."""

    def __init__(self, given):
        self.given = given

    def __call__(self, prompts, responses):
        return [0.0] * len(prompts)

    def read_answer(self, prompt, response):
        assert prompt.prompt_id >= 70
        return self.given(response)


def test_answers_are_read_in_order_by_the_reward_or_are_the_text():
    texts = [f"{chr(97 + i)} b" for i in range(26)]
    assert read_answers(Reading(lambda t: t[0]), "own", rollouts(*texts)) == [t[0] for t in texts]
    assert read_answers(Reading(lambda t: None), "own", rollouts("a")) == [None]
    assert read_answers(lambda p, r: [], "own", rollouts(" a b\n", "", " ")) == ["a b", None, None]
    assert read_answers(Reading(str), "own", []) == []


def test_an_answer_that_cannot_be_read_names_the_sample():
    words = "reward own: read_answer raised IndexError on row 11 .*prompt_id 71"
    with pytest.raises(RunError, match=words):
        read_answers(Reading(lambda t: t[0]), "own", rollouts("a", ""))
    with pytest.raises(RunError, match="read_answer gave 3 for row 10 .*must give text, or None"):
        read_answers(Reading(lambda t: 3), "own", rollouts("a"))

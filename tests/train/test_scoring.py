"""What a response is worth in sum, and which tokens carry the rewards of its steps."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from megarl.config.schema import RewardConfig
from megarl.errors import RunError
from megarl.rewards.base import StepRewards
from megarl.rewards.judging import WeightedReward
from megarl.train.scoring import Score, Scorer
from megarl.train.shaping import RewardShaping
from megarl.types import Prompt, Rollout, RolloutRequest, RowTable

WORDS = ("ab ", "c", "def ", "g", "")
"""Token -> text; the last is an end of sequence."""


def decode(ids: Any) -> str:
    return "".join(WORDS[i] for i in ids)


def rollout(ids: tuple[int, ...], *, finished: bool = True) -> Rollout:
    prompt = Prompt(0, (5,), "p", "", "s")
    text, reason = decode(ids), "stop" if finished else "length"
    return Rollout(RolloutRequest(0, 0, prompt, 0), ids, (0.0,) * len(ids), text, reason, 1)


def scorer(*rewards: WeightedReward, **options: Any) -> Scorer:
    nowhere: Any = SimpleNamespace()
    return Scorer(nowhere, nowhere, rewards, decode=decode, **options)


def judge(given: Scorer, *rollouts: Rollout) -> list[Score]:
    """What they are worth."""
    with given.judging() as judging:
        judging.add(rollouts)
        return given.complete(rollouts, judging.finish())


def constant(value: Any, coef: float = 1.0, name: str = "judge") -> WeightedReward:
    return WeightedReward(name, lambda prompts, responses: [value] * len(prompts), coef)


def test_weights_and_penalties_add_up_and_the_first_judges() -> None:
    given = scorer(constant(0.5, 2.0), constant(3.0, -0.1, "short"), missing_eos_penalty=0.25)
    (whole,), (cut,) = judge(given, rollout((0, 4))), judge(given, rollout((0,), finished=False))
    assert whole.reward == pytest.approx(2 * 0.5 - 0.1 * 3)
    assert cut.reward == pytest.approx(whole.reward - 0.25)
    assert whole.verdict == cut.verdict == 0.5
    assert dict(whole.parts) == {"judge": 0.5, "short": 3.0}


def test_without_a_judge_there_is_no_verdict() -> None:
    found = judge(scorer(constant(0.5, 1.0, "style"), judges=False), rollout((0,)))[0]
    assert found.verdict is None and found.reward == 0.5


CASES = {
    # "ab c" + "def " + "g" + end
    "at each token's end": ((0, 1, 2, 3, 4), [(3, 1.0), (4, 2.0), (8, 3.0)], {0: 1, 1: 2, 2: 3}),
    "inside a token": ((0, 1, 2, 3, 4), [(1, 1.0), (6, 2.0)], {0: 1, 2: 2}),
    "the end is the last token": ((0, 1, 2, 3, 4), [(9, 5.0)], {4: 5}),
    "two on one token add up": ((0, 1, 2), [(1, 1.0), (2, 2.0)], {0: 3}),
    "none of an empty response": ((), [], {}),
    "nothing but an end": ((4,), [(0, 2.0)], {0: 2}),
}


@pytest.mark.parametrize(("ids", "steps", "expected"), CASES.values(), ids=CASES.keys())
def test_steps_are_paid_at_their_last_token(
    ids: tuple[int, ...], steps: list[tuple[int, float]], expected: dict[int, float]
) -> None:
    given = scorer(constant(StepRewards(steps, 7.0), 0.5))
    (found,) = judge(given, rollout(ids))
    assert dict(found.steps) == {token: worth / 2 for token, worth in expected.items()}
    assert found.reward == 3.5 and found.verdict == 7.0


def table(reward: list[float], lengths: list[int], right: list[bool]) -> RowTable:
    count = len(reward)
    return RowTable(
        group=torch.zeros(count, dtype=torch.int32),
        prompt_length=torch.ones(count, dtype=torch.int32),
        response_length=torch.tensor(lengths, dtype=torch.int32),
        reward=torch.tensor(reward),
        finished=torch.ones(count, dtype=torch.bool),
        weight_version=torch.zeros(count, dtype=torch.int32),
        source=("",) * count,
        right=torch.tensor(right),
    )


def shaped(config: RewardConfig, *tables: RowTable) -> list[float]:
    """The last table's rewards, after the steps of all."""
    shaping = RewardShaping(config, max_length=10)
    for each in tables:
        shaping.observe(each)
    return [round(float(x), 6) for x in shaping.apply(tables[-1]).reward]


def test_rewards_are_clipped_then_normalised_then_made_shorter() -> None:
    """By hand: 9 becomes 3; of 1, 3 mean 2 and spread sqrt 2; 0.5 and -0.5 for length; overlong."""
    config = RewardConfig(clip=[0.0, 3.0], normalize=True, length_penalty="group")
    config.length_penalty_coef = 2.0
    config.overlong_buffer_len, config.overlong_penalty_factor = 4, 10.0
    found = shaped(config, table([1.0, 9.0], [2, 8], [True, True]))
    by_spread = 1 / 2**0.5
    assert found == [round(-by_spread + 1.0, 6), round(by_spread - 1.0 - 10 * 2 / 4, 6)]


def test_the_norm_remembers_earlier_steps_also_after_a_restart() -> None:
    config = RewardConfig(normalize=True)
    first, second = table([0.0, 4.0], [1, 1], [True] * 2), table([8.0, 0.0], [1, 1], [True] * 2)
    whole = shaped(config, first, second)
    seen = torch.tensor([0.0, 4.0, 8.0, 0.0])
    expected = (torch.tensor([8.0, 0.0]) - seen.mean()) / seen.std()
    assert whole == [round(float(x), 6) for x in expected]
    before, after = RewardShaping(config, 10), RewardShaping(config, 10)
    before.observe(first)
    after.load_state_dict(before.state_dict())
    after.observe(second)
    assert [round(float(x), 6) for x in after.apply(second).reward] == whole


def test_the_cosine_takes_the_place_of_the_reward() -> None:
    config = RewardConfig(length_penalty="cosine", length_penalty_coef=0.5)
    config.length_penalty_kwargs = {"right_short": 4.0, "right_long": 2.0, "exceeded": -6.0}
    found = shaped(config, table([9.0, 9.0, 9.0], [5, 10, 0], [True, False, True]))
    assert found == [1.5, -3.0, 2.0]


def test_off_it_changes_nothing() -> None:
    shaping, given = RewardShaping(RewardConfig(), 10), table([1.5, -2.0], [3, 10], [True, False])
    assert not shaping.is_on
    shaping.observe(given)
    assert shaping.apply(given).reward.tolist() == [1.5, -2.0]
    assert shaping.state_dict()["count"] == 0


def test_a_sum_that_is_no_number_names_its_parts() -> None:
    given = scorer(constant(1e30), constant(1e30, 3.0, "other"))
    with pytest.raises(RunError, match=r"of row 0 .*add up to 4e\+30.*other.*function_coef"):
        judge(given, rollout((0,)))

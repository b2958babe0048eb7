"""Which samples make a step: rounds, refills, numbers, baselines; with an engine of arithmetic."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from megarl.config.schema import Config
from megarl.data.order import PromptOrder
from megarl.errors import RunError
from megarl.rewards.judging import WeightedReward
from megarl.train.phases.generate import Samples, generate
from megarl.train.scoring import Scorer
from megarl.train.shaping import RewardShaping
from megarl.types import Prompt, Rollout, RolloutRequest, SamplingSpec

COUNT = 2
"""Samples of a prompt."""


@dataclass
class Engine:
    """Answers a prompt's n-th sample with the text "n"; greedily with "9"."""

    version: int = 1
    asked: list[RolloutRequest] = field(default_factory=list)
    slept: int = 0
    num_replicas: int = 1

    def generate(
        self,
        requests: Sequence[RolloutRequest],
        sampling: SamplingSpec,
        on_finished: Callable[[Sequence[Rollout]], None],
        *,
        greedy: Sequence[RolloutRequest] = (),
    ) -> list[Rollout]:
        self.asked += requests
        done = [
            Rollout(one, (3,) * (1 + one.row % COUNT), (0.0,), str(one.row % COUNT), "stop", 1)
            for one in requests
        ]
        done += [Rollout(one, (3,), (0.0,), "9", "stop", 1) for one in greedy]
        for one in done:
            on_finished([one])
        return sorted(done, key=lambda one: one.request.row)

    def sleep(self) -> None:
        self.slept += 1


class OneRank:
    """What `generate` reads of a run, on one rank."""

    def __init__(self, judge: Callable[[int, int], float], num_prompts: int = 12, size: int = 4):
        self.config, self.step = Config(), 0
        self.config.data.n_samples_per_prompt, self.config.data.rollout_batch_size = COUNT, size
        self.config.algorithm.adv_estimator = "grpo"
        self.prompts = [Prompt(i, (5, 6), "q", "", f"s{i % 2}") for i in range(num_prompts)]
        self.order = PromptOrder(num_prompts, size, 0, shuffle=False)
        self.rollout, self.sampling = Engine(), SamplingSpec()
        self.shaping = RewardShaping(self.config.reward, 16)
        self.universe: Any = type("U", (), {"rank": 0})
        self.ahead = None
        self.actor: Any = type("A", (), {"weight_version": 1})
        self.control: Any = type("C", (), {"gather": staticmethod(lambda facts: [facts])})

        def reward(prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float]:
            both = zip(prompts, responses, strict=True)
            return [judge(prompt.prompt_id, int(text)) for prompt, text in both]

        self.scorer = Scorer(self.universe, self.control, (WeightedReward("own", reward, 1.0),))

    @contextmanager
    def verb(self, name: str) -> Iterator[None]:
        yield

    def next_prompts(self, count: int | None = None) -> list[Prompt]:
        return [self.prompts[i] for i in self.order.next(count)]


def step(run: OneRank) -> Samples:
    given: Any = run
    return generate(given, run.next_prompts())


def prompts_of(samples: Samples) -> list[int]:
    """Prompt of each row."""
    rows = sorted(samples.rollouts)
    return [samples.rollouts[row].request.prompt.prompt_id for row in rows]


def test_without_a_filter_all_prompts_are_taken() -> None:
    run = OneRank(lambda prompt, sample: float(prompt))
    samples = step(run)
    assert prompts_of(samples) == [0, 0, 1, 1, 2, 2, 3, 3]
    assert samples.table.reward.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert samples.table.group.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert samples.metrics["reward_mean/s0"] == 1.0 and samples.metrics["reward_mean/s1"] == 2.0
    assert run.rollout.slept == 1


def test_dull_prompts_are_replaced() -> None:
    """Even prompts are right once, odd ones never: eight are drawn for four that differ."""
    run = OneRank(lambda prompt, sample: float(prompt % 2 == 0 and sample == 1))
    run.config.algorithm.filter_groups.enable = True
    samples = step(run)
    assert prompts_of(samples) == [0, 0, 2, 2, 4, 4, 6, 6]
    assert samples.table.group.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert samples.table.reward.tolist() == [0, 1] * 4
    assert samples.table.response_length.tolist() == [1, 2] * 4
    assert len(samples.source.owner) == 8 and sorted(samples.rollouts) == list(range(8))
    found = {name: samples.metrics[f"filter_groups/{name}"] for name in
             ("rounds", "kept", "surplus", "filled")}  # fmt: skip
    assert found == {"rounds": 2, "kept": 0.5, "surplus": 0, "filled": 0}
    assert samples.metrics["tokens/generated"] == 8 * 3
    assert run.rollout.slept == 1
    run.step = 1
    assert prompts_of(step(run))[0] == 8  # the data goes on where the refills ended


def test_what_is_one_too_many_is_counted() -> None:
    """None of the first four differs, then all: as few are sure to, four are drawn again."""
    run = OneRank(lambda prompt, sample: float(prompt in (0, 4, 5, 6, 7) and sample == 1))
    run.config.algorithm.filter_groups.enable = True
    samples = step(run)
    assert prompts_of(samples) == [0, 0, 4, 4, 5, 5, 6, 6]
    assert samples.metrics["filter_groups/surplus"] == 1


def test_at_the_cap_the_step_takes_what_there_is() -> None:
    run = OneRank(lambda prompt, sample: float(prompt == 5 and sample == 1))
    run.config.algorithm.filter_groups.enable = True
    run.config.algorithm.filter_groups.max_num_gen_batches = 2
    samples = step(run)
    assert prompts_of(samples) == [0, 0, 1, 1, 2, 2, 5, 5]
    assert samples.metrics["filter_groups/filled"] == 3
    assert samples.metrics["filter_groups/rounds"] == 2
    assert run.rollout.slept == 1


@pytest.mark.parametrize("metric", ["accuracy", "reward"])
def test_the_metric_says_what_differs(metric: str) -> None:
    """Prompt 0 is wrong twice, with two rewards."""
    run = OneRank(lambda prompt, sample: 0.1 * sample if prompt == 0 else float(sample))
    run.config.algorithm.filter_groups.enable = True
    run.config.algorithm.filter_groups.metric = metric
    assert (0 in prompts_of(step(run))) == (metric == "reward")


def test_a_prompt_that_comes_twice_gets_other_samples() -> None:
    """In one step, over the end of the data: the seeds go on."""
    run = OneRank(lambda prompt, sample: 0.0, num_prompts=4)
    run.config.algorithm.filter_groups.enable = True
    run.config.algorithm.filter_groups.max_num_gen_batches = 3
    step(run)
    seeds = [one.seed for one in run.rollout.asked if one.prompt.prompt_id == 0]
    assert len(seeds) == 3 * COUNT == len(set(seeds))


def test_greedy_answers_are_baselines_of_their_prompts() -> None:
    run = OneRank(lambda prompt, sample: prompt + 0.1 * sample)
    run.config.algorithm.adv_estimator = "remax"
    samples = step(run)
    assert prompts_of(samples) == [0, 0, 1, 1, 2, 2, 3, 3]
    assert samples.table.baseline is not None
    expected = [prompt + 0.9 for prompt in (0, 0, 1, 1, 2, 2, 3, 3)]
    assert samples.table.baseline.tolist() == pytest.approx(expected)
    assert len(samples.table) == 8


def test_samples_of_other_weights_are_refused() -> None:
    run = OneRank(lambda prompt, sample: 0.0)
    run.actor.weight_version = 2
    with pytest.raises(RunError, match="weight version 1, the actor is at 2"):
        step(run)


def test_a_sample_that_does_not_come_back_is_missed() -> None:
    run = OneRank(lambda prompt, sample: 0.0)
    whole = run.rollout.generate

    def loses_one(*given: Any, **options: Any) -> list[Rollout]:
        return whole(*given, **options)[1:]

    run.rollout = replace(run.rollout)
    run.rollout.generate = loses_one  # type: ignore[method-assign]
    with pytest.raises(RunError, match=r"rows \[1, 2, 3, 4, 5, 6, 7\] came back"):
        step(run)

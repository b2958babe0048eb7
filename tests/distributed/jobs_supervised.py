"""Jobs of the tests of learning from examples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from parts import RoleSpec, run_plan
from torch import Tensor
from worker import Rank

from megarl.config.schema import Config, ModelConfig, OptimizerConfig
from megarl.data.examples import Example
from megarl.data.preferences import Pair
from megarl.mesh.layout import MeshLayout
from megarl.roles.actor import Actor
from megarl.roles.reward_model import RewardModel
from megarl.train.build import Builder
from megarl.train.next_token import NextToken
from megarl.train.preference import Preference


@dataclass(frozen=True)
class Case:
    """How a model is trained."""

    path: str
    layout: MeshLayout
    optimizer: OptimizerConfig
    packing: bool = False
    max_tokens: int | None = None


Found = list[dict[str, float]]
"""Metrics before the first step, of each step, and after the last."""


def learn_tokens(rank: Rank, case: Case, steps: list[list[Example]]) -> Found:
    """One optimizer step on each batch; first and last are evaluations on the first batch."""
    return _learn(NextToken(rank.control, _role(rank, case, Actor)), steps)


def learn_pairs(rank: Rank, case: Case, steps: list[list[Pair]]) -> Found:
    """The same with preferences."""
    return _learn(Preference(rank.control, _role(rank, case, RewardModel)), steps)


class NotedExample:
    """An example that keeps whether it was read."""

    def __init__(self, example: Example) -> None:
        self._example, self.was_read = example, False
        self.length, self.prompt_length = example.length, example.prompt_length

    @property
    def tokens(self) -> Tensor:
        """The example's."""
        self.was_read = True
        return self._example.tokens

    @property
    def learned(self) -> Tensor:
        """The example's."""
        self.was_read = True
        return self._example.learned


def texts_read(rank: Rank, case: Case, examples: list[Example]) -> list[int]:
    """Numbers of the examples that this rank read for one step."""
    noted = [NotedExample(example) for example in examples]
    NextToken(rank.control, _role(rank, case, Actor)).step(noted)
    return [number for number, one in enumerate(noted) if one.was_read]


def _learn(objective: Any, steps: Any) -> Found:
    found = [objective.evaluate(steps[0], 5)]
    found += [objective.step(batch) for batch in steps]
    return [*found, objective.evaluate(steps[0], 5)]


def _role(rank: Rank, case: Case, kind: type[Any]) -> Any:
    config = Config()
    config.algorithm.micro_batch_size = 3
    config.algorithm.sequence_packing = case.packing
    config.algorithm.use_dynamic_batch_size = case.max_tokens is not None
    config.algorithm.max_tokens_per_gpu = case.max_tokens or 0
    plan = run_plan(case.path, RoleSpec(tuple(range(rank.universe.size)), case.layout))
    builder = Builder(config, plan, rank.universe)
    return builder.role("actor", kind, plan.actor, ModelConfig(), case.optimizer, 10)

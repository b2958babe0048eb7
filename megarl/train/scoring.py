"""What samples are worth: the task's function, and the reward model's score beside it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from megarl.errors import RunError
from megarl.mesh.control import Control
from megarl.mesh.rows import RowMap, move_rows
from megarl.mesh.universe import Universe
from megarl.rewards.base import RewardFunction, read_answers
from megarl.rewards.base import score as score_function
from megarl.roles.reward_model import RewardModel
from megarl.roles.step_rows import StepRows
from megarl.types import Rollout


class Score(NamedTuple):
    """What one response is worth."""

    reward: float
    """To training."""
    verdict: float | None
    """The function's reward, which says right from wrong; None without a function."""


@dataclass(frozen=True, slots=True)
class Scorer:
    """The reward of a run, the same on all ranks."""

    universe: Universe
    control: Control
    function: tuple[str, RewardFunction] | None
    """Its name, and the function."""
    model: RewardModel | None
    model_coef: float = 1.0
    missing_eos_penalty: float = 0.0
    function_coef: float = 1.0

    def score(self, rollouts: Sequence[Rollout]) -> list[float]:
        """Reward of each of this rank's rollouts, in order; all ranks call it together.

        RunError, naming row and prompt, for a reward that raises or is not a finite number.
        """
        return [score.reward for score in self.judge(rollouts)]

    def judge(self, rollouts: Sequence[Rollout]) -> list[Score]:
        """The same, with what the function alone says: it judges also where its weight is 0."""
        said_by_function = [0.0] * len(rollouts)
        if self.function is not None:
            name, function = self.function
            said_by_function = score_function(function, name, rollouts)
        rewards = [self.function_coef * reward for reward in said_by_function]
        if self.model is not None:
            said = _ask_model(self.universe, self.control, self.model, rollouts)
            rewards = [
                reward + self.model_coef * _finite(said[one.request.row], one)
                for reward, one in zip(rewards, rollouts, strict=True)
            ]
        rewards = [
            reward - self.missing_eos_penalty * (one.finish_reason != "stop")
            for reward, one in zip(rewards, rollouts, strict=True)
        ]
        judged: Sequence[float | None] = (
            said_by_function if self.function else [None] * len(rewards)
        )
        return [Score(*both) for both in zip(rewards, judged, strict=True)]

    def read_answers(self, rollouts: Sequence[Rollout]) -> list[str | None]:
        """What each rollout answers, as the function reads it; None for none. No other rank is met.

        RunError, naming row and prompt, where it cannot be read.
        """
        if self.function is None:
            return [None] * len(rollouts)
        name, function = self.function
        return read_answers(function, name, rollouts)


def _ask_model(
    universe: Universe, control: Control, model: RewardModel, rollouts: Sequence[Rollout]
) -> dict[int, float]:
    """Row -> the model's score, of all ranks' rows; rows are numbered from 0 without gaps."""
    own = [
        (r.request.row, r.request.group, len(r.request.prompt.token_ids), len(r.response_ids))
        for r in rollouts
    ]
    placed = sorted((*row, rank) for rank, rows in enumerate(control.gather(own)) for row in rows)
    _, group, prompt_length, response_length, owner = zip(*placed, strict=True)
    rows = StepRows(group, prompt_length, response_length, (tuple(range(len(placed))),))
    tokens = {
        r.request.row: torch.tensor(r.request.prompt.token_ids + r.response_ids) for r in rollouts
    }
    dealt = model.deal(rows)
    arrived = move_rows(universe, tokens, rows.length, RowMap(owner), dealt.map, torch.int64)
    scores = model.scores(model.take_rows(dealt, arrived))
    return {row: score for answer in control.gather(scores) for row, score in answer.items()}


def _finite(value: float, rollout: Rollout) -> float:
    if math.isfinite(value):
        return value
    request = rollout.request
    raise RunError(
        f"reward model: its score is {value} for row {request.row} (prompt_id "
        f"{request.prompt.prompt_id}); look at reward.model's weights. The response was "
        f"{rollout.text[:80]!r}"
    )

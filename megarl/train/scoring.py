"""What samples are worth: the task's function, others beside it, and the reward model's score."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from megarl.errors import RunError
from megarl.mesh.control import Control
from megarl.mesh.rows import RowMap, move_rows
from megarl.mesh.universe import Universe
from megarl.rewards.base import LARGEST, StepRewards, read_answers
from megarl.rewards.judging import Judging, Said, WeightedReward
from megarl.rewards.load import ENVIRONMENT, MODEL
from megarl.roles.reward_model import RewardModel
from megarl.roles.step_rows import StepRows
from megarl.types import Rollout


class Score(NamedTuple):
    """What one response is worth."""

    reward: float
    """To training."""
    verdict: float | None
    """The function's reward, or the environment's, which says right from wrong; None without."""
    parts: Mapping[str, float]
    """What each function and the model said, before their weights."""
    steps: Mapping[int, float]
    """Token of the response -> process reward, weighted; not part of `reward`."""


@dataclass(frozen=True, slots=True)
class Scorer:
    """The reward of a run, the same on all ranks."""

    universe: Universe
    control: Control
    functions: tuple[WeightedReward, ...] = ()
    """Those of `reward.function` and `reward.extra_functions`."""
    model: RewardModel | None = None
    model_coef: float = 1.0
    missing_eos_penalty: float = 0.0
    judges: bool = True
    """Whether the first function is `reward.function`, which says right from wrong."""
    overlap: bool = True
    """Call the functions while others are still being generated."""
    decode: Callable[[Sequence[int]], str] | None = field(default=None, compare=False)
    """Tokens to text, which places process rewards; only where there are functions."""

    def judging(self) -> Judging:
        """What scores rollouts by the functions as they come, for `complete`."""
        return Judging(self.functions, overlap=self.overlap)

    def complete(self, rollouts: Sequence[Rollout], said: Mapping[int, Said]) -> list[Score]:
        """What each of this rank's rollouts is worth, in order; all ranks call it together.

        said: of `judging`, by row. RunError, naming row and prompt, for a model's score or a sum
        that is not a finite number.
        """
        by_model: Mapping[int, float] = {}
        if self.model is not None:
            by_model = _ask_model(self.universe, self.control, self.model, rollouts)
        return [self._sum(one, said[one.request.row], by_model) for one in rollouts]

    def is_right(self, verdict: float | None, finished: bool, success_reward: float) -> bool | None:
        """Whether an answer is a success; None where nothing says so."""
        return None if verdict is None else verdict >= success_reward - 1e-6 and finished

    def _sum(self, rollout: Rollout, said: Said, by_model: Mapping[int, float]) -> Score:
        parts: dict[str, float] = {}
        steps: dict[int, float] = {}
        verdict: float | None = None
        reward = -self.missing_eos_penalty * (rollout.finish_reason != "stop")
        for each, value in zip(self.functions, said, strict=True):
            if isinstance(value, StepRewards):
                for token, worth in self._at_tokens(rollout, value):
                    steps[token] = steps.get(token, 0.0) + each.coef * worth
            score = value.score if isinstance(value, StepRewards) else value
            verdict = score if self.judges and not parts else verdict
            parts[each.name] = score
            reward += each.coef * score
        if rollout.reward is not None:
            parts[ENVIRONMENT] = rollout.reward
            verdict = rollout.reward if verdict is None else verdict
            reward += rollout.reward
        if self.model is not None:
            parts[MODEL] = _finite(by_model[rollout.request.row], rollout)
            reward += self.model_coef * parts[MODEL]
        if not abs(reward) <= LARGEST:
            raise RunError(
                f"the rewards of row {rollout.request.row} (prompt_id "
                f"{rollout.request.prompt.prompt_id}) add up to {reward}: {parts}; look at "
                "reward.function_coef, model_coef and extra_functions"
            )
        return Score(reward, verdict, parts, steps)

    def _at_tokens(self, rollout: Rollout, rewards: StepRewards) -> list[tuple[int, float]]:
        """The last token of each step, with the step's reward."""
        ids, decode = rollout.response_ids, self.decode
        assert decode is not None
        found, last = [], 0
        for end, reward in rewards.steps if ids else ():
            if end >= len(rollout.text):
                last = len(ids) - 1
            else:  # steps come in order: none ends before the one before it
                places = range(last, len(ids) - 1)
                last += bisect_left(places, end, key=lambda n: len(decode(ids[: n + 1])))
            found.append((last, reward))
        return found

    def read_answers(self, rollouts: Sequence[Rollout]) -> list[str | None]:
        """What each rollout answers, as the judge reads it; None for none. No other rank is met.

        RunError, naming row and prompt, where it cannot be read.
        """
        if not (self.functions and self.judges):
            return [None] * len(rollouts)
        judge = self.functions[0]
        return read_answers(judge.function, judge.name, rollouts)


def _ask_model(
    universe: Universe, control: Control, model: RewardModel, rollouts: Sequence[Rollout]
) -> dict[int, float]:
    """Row -> the model's score, of all ranks' rows."""
    own = [
        (r.request.row, r.request.group, len(r.request.prompt.token_ids), len(r.response_ids))
        for r in rollouts
    ]
    placed = sorted((*row, rank) for rank, rows in enumerate(control.gather(own)) for row in rows)
    names, group, prompt_length, response_length, owner = zip(*placed, strict=True)
    index = {row: i for i, row in enumerate(names)}
    rows = StepRows(group, prompt_length, response_length, (tuple(range(len(placed))),))
    tokens = {
        index[r.request.row]: torch.tensor(r.request.prompt.token_ids + r.response_ids)
        for r in rollouts
    }
    dealt = model.deal(rows)
    arrived = move_rows(universe, tokens, rows.length, RowMap(owner), dealt.map, torch.int64)
    scores = model.scores(model.take_rows(dealt, arrived))
    return {names[row]: score for found in control.gather(scores) for row, score in found.items()}


def _finite(value: float, rollout: Rollout) -> float:
    if math.isfinite(value):
        return value
    request = rollout.request
    raise RunError(
        f"reward model: its score is {value} for row {request.row} (prompt_id "
        f"{request.prompt.prompt_id}); look at reward.model's weights. The response was "
        f"{rollout.text[:80]!r}"
    )

"""Rewards on their way to advantages: limits, normalisation, length."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from torch import Tensor

from megarl.algorithms.shaping import (
    RunningNorm,
    clip_scores,
    cosine_length_reward,
    group_length_reward,
    overlong_penalty,
    score_sums,
)
from megarl.config.schema import RewardConfig
from megarl.types import RowTable


@dataclass
class RewardShaping:
    """What is done to the rewards of a step, in this order: clip, normalise, length, overlong.

    Lifecycle: `observe` once per step, then `apply` to its tables. Every rank sees all rewards of a
    step, so nothing is exchanged.
    """

    config: RewardConfig
    max_length: int
    """Tokens: the longest response."""
    norm: RunningNorm = field(default_factory=RunningNorm)

    @property
    def is_on(self) -> bool:
        """Whether any of it is asked for."""
        config = self.config
        return bool(
            config.clip or config.normalize or config.length_penalty or config.overlong_buffer_len
        )

    def observe(self, table: RowTable) -> None:
        """Take a step's rewards into the running mean and spread."""
        if self.config.normalize:
            self.norm.update(score_sums(self._clipped(table)))

    def apply(self, table: RowTable) -> RowTable:
        """The table with the rewards that are learned from."""
        config, lengths = self.config, table.response_length
        reward = self._clipped(table)
        if config.normalize:
            reward = self.norm.apply(reward)
        if config.length_penalty is not None:
            reward = self._by_length(reward, table)
        if config.overlong_buffer_len:
            penalty = overlong_penalty(lengths, self.max_length, config.overlong_buffer_len)
            reward = reward + config.overlong_penalty_factor * penalty
        return replace(table, reward=reward.float())

    def state_dict(self) -> dict[str, float]:
        """The running mean and spread."""
        return self.norm.state_dict()

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Go on from there."""
        self.norm.load_state_dict(state)

    def _by_length(self, reward: Tensor, table: RowTable) -> Tensor:
        config, lengths, right = self.config, table.response_length, table.right
        assert right is not None
        if config.length_penalty == "group":
            return reward + config.length_penalty_coef * group_length_reward(
                lengths, right, table.group
            )
        return config.length_penalty_coef * cosine_length_reward(
            lengths, right, self.max_length, **config.length_penalty_kwargs
        )

    def _clipped(self, table: RowTable) -> Tensor:
        low_high = self.config.clip
        return clip_scores(table.reward, *low_high) if low_high else table.reward

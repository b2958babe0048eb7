"""Scores of responses on their way to advantages: lengths, limits, weights, and what is left out.

Scores are float [B], lengths int [B] in response tokens. What compares samples takes group, int
[B]: rows with the same number answer the same prompt, and a group is never split over calls.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from megarl.algorithms.groups import Groups
from megarl.algorithms.masked import moments
from megarl.errors import ConfigError


def overlong_penalty(lengths: Tensor, max_length: int, buffer: int) -> Tensor:
    """float32 [B], from 0 to -1, to be added to the score: DAPO's soft overlong punishment.

    Yu et al. 2025 (arXiv:2503.14476), eq. 13: 0 up to max_length - buffer, then falling in a line
    to -1 at max_length, and -1 beyond. max_length, buffer: tokens; ConfigError unless 0 < buffer <=
    max_length.
    """
    if not 0 < buffer <= max_length:
        raise ConfigError(
            f"the overlong buffer is {buffer} tokens and the longest response {max_length}: give a "
            "positive buffer of at most that"
        )
    over = lengths.float() - (max_length - buffer)
    return -(over / buffer).clamp(0, 1)


def overlong_filter(mask: Tensor, finished: Tensor) -> Tensor:
    """bool [B, R]: the mask without responses that were cut off: DAPO's overlong filtering.

    mask: bool [B, R]; finished: bool [B], whether the response ended by itself.
    """
    return mask & finished[:, None]


def informative_groups(scores: Tensor, group: Tensor) -> Tensor:
    """bool [B]: False where all samples of the row's prompt score the same, one sample included.

    All right or all wrong, such groups have no advantage: DAPO's dynamic sampling (the same paper)
    draws other prompts for them. scores: float [B], or verdicts, bool [B].
    """
    return Groups(group).differ(scores.double())


def clip_scores(scores: Tensor, low: float, high: float) -> Tensor:
    """float [B]: scores kept within low and high; ConfigError unless low < high."""
    if not low < high:
        raise ConfigError(f"scores cannot be kept above {low} and below {high}: give low < high")
    return scores.clamp(low, high)


def group_length_reward(lengths: Tensor, right: Tensor, group: Tensor) -> Tensor:
    """float32 [B], from 0.5 (shortest of the group) to -0.5 (longest), to be added to the score.

    Kimi k1.5, Kimi Team 2025 (arXiv:2501.12599), sec. 2.3.3: 0.5 - (length - least) / (greatest -
    least) of a right answer; of a wrong one at most 0; 0 where all lengths are equal. right: bool
    [B].
    """
    groups, length = Groups(group), lengths.float()
    least, greatest = groups.least(length), groups.greatest(length)
    spread = greatest - least
    reward = 0.5 - (length - least) / spread.clamp(min=1)
    reward = torch.where(right, reward, reward.clamp(max=0))
    return torch.where(spread > 0, reward, 0.0)


def cosine_length_reward(
    lengths: Tensor,
    right: Tensor,
    max_length: int,
    *,
    right_short: float = 2.0,
    right_long: float = 1.0,
    wrong_short: float = -10.0,
    wrong_long: float = 0.0,
    exceeded: float = -10.0,
) -> Tensor:
    """float32 [B], in place of the score: a right answer earns more if short, a wrong one if long.

    Yeo et al. 2025 (arXiv:2502.03373): along half a cosine from *_short at length 0 to *_long at
    max_length; `exceeded` from max_length on. lengths: tokens; right: bool [B]; max_length: tokens,
    above 0.
    """
    if max_length <= 0:
        raise ConfigError(f"the cosine length reward's max_length is {max_length}: give 1 or more")
    way = 0.5 * (1 + torch.cos(lengths.float().clamp(max=max_length) * (math.pi / max_length)))
    of_right = right_long + (right_short - right_long) * way
    of_wrong = wrong_long + (wrong_short - wrong_long) * way
    return torch.where(lengths >= max_length, exceeded, torch.where(right, of_right, of_wrong))


class RunningNorm:
    """Mean and spread of all scores so far, which scores are divided by.

    Welford 1962, in Chan's form for batches (Chan et al. 1979): counts, means and squared distances
    of two parts give those of both. Lifecycle: `update` with the step's `score_sums`, added over
    ranks, then `apply`; the state is three numbers.
    """

    def __init__(self) -> None:
        self.count = self.mean = self.squares = 0.0

    def update(self, sums: Tensor) -> None:
        """Take in the scores whose count, sum and sum of squares are `sums`, float64 [3]."""
        count, total, squares = sums.tolist()
        if count <= 0:
            return
        mean = total / count
        inside = max(squares - total * mean, 0.0)
        whole, apart = self.count + count, mean - self.mean
        self.squares += inside + apart**2 * self.count * count / whole
        self.mean += apart * count / whole
        self.count = whole

    @property
    def std(self) -> float:
        """Unbiased; 0 of fewer than two scores."""
        return math.sqrt(self.squares / (self.count - 1)) if self.count > 1 else 0.0

    def apply(self, scores: Tensor, *, centre: bool = True, eps: float = 1e-8) -> Tensor:
        """float [B]: (scores - mean) / (std + eps); without a spread only centred.

        centre=False leaves the mean in, so that the sign of a score stays.
        """
        away = scores - self.mean if centre else scores
        return away / (self.std + eps) if self.std > 0 else away

    def state_dict(self) -> dict[str, float]:
        """What a checkpoint keeps."""
        return {"count": self.count, "mean": self.mean, "squares": self.squares}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Continues from `state_dict`."""
        self.count, self.mean, self.squares = state["count"], state["mean"], state["squares"]


def score_sums(scores: Tensor) -> Tensor:
    """float64 [3]: count, sum and sum of squares of scores, float [B]: what `RunningNorm` takes."""
    return moments(scores[:, None], torch.ones_like(scores, dtype=torch.bool)[:, None])

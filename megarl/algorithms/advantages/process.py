"""GRPO with process supervision: rewards of steps, compared within the group."""

from __future__ import annotations

import torch
from torch import Tensor

from megarl.algorithms.advantages.base import AdvantageInputs, Advantages, outcome, register
from megarl.algorithms.advantages.rewards import last_tokens
from megarl.algorithms.advantages.scan import discounted_sums
from megarl.algorithms.groups import Groups
from megarl.algorithms.masked import at_least_fp32, row_chunks, token_counts


@torch.no_grad()
def process(
    rewards: Tensor, steps: Tensor, mask: Tensor, group: Tensor, eps: float = 1e-6
) -> Tensor:
    """float [B, R]: sum of the normalised rewards of the steps that end at t or later.

    Shao et al. 2024 (arXiv:2402.03300), sec. 4.1.3: r' = (r - mean) / (std + eps) over all step
    rewards of the group (unbiased std), A_t = sum of the r' at or after t. rewards: float [B, R];
    steps: bool [B, R], the tokens that carry a step's reward; mask: bool [B, R]; group: int [B].
    Rewards of a group that are all equal give 0.
    """
    groups, found = Groups(group), torch.empty_like(rewards)
    mean, std = _group_moments(rewards, steps & mask, groups)
    for rows in row_chunks(rewards):
        carries = steps[rows] & mask[rows]
        r = at_least_fp32(rewards[rows])
        scaled = (r - mean[rows, None].to(r.dtype)) / (std[rows, None] + eps).to(r.dtype)
        scaled = torch.where(carries & (std[rows, None] > 0), scaled, 0.0)
        found[rows] = torch.where(mask[rows], discounted_sums(scaled, 1.0), 0.0)
    return found


def _group_moments(rewards: Tensor, steps: Tensor, groups: Groups) -> tuple[Tensor, Tensor]:
    """Of each row's group, float64 [B]: mean and unbiased std of the rewards of steps.

    The std is exactly 0 where they are all equal.
    """
    count = groups.sum(token_counts(steps))
    total, low, high, squares = rewards.new_zeros(4, len(rewards), dtype=torch.float64)
    low, high = low + torch.inf, high - torch.inf
    for rows in row_chunks(rewards):
        kept = rewards[rows].double()
        total[rows] = torch.where(steps[rows], kept, 0.0).sum(-1)
        if rewards.shape[1]:
            low[rows] = torch.where(steps[rows], kept, torch.inf).amin(-1)
            high[rows] = torch.where(steps[rows], kept, -torch.inf).amax(-1)
    mean = groups.sum(total) / count.clamp(min=1)
    for rows in row_chunks(rewards):
        kept = torch.where(steps[rows], rewards[rows].double() - mean[rows, None], 0.0)
        squares[rows] = kept.square_().sum(-1)
    variance = groups.sum(squares) / (count - 1).clamp(min=1)
    differ = groups.greatest(high) > groups.least(low)
    return mean, torch.where(differ, variance.sqrt(), 0.0)


@register("grpo_process", needs_groups=True)
def _grpo_process(inputs: AdvantageInputs) -> Advantages:
    steps = inputs.steps
    if steps is None:  # outcome supervision: the last token ends the one step
        steps = torch.zeros_like(inputs.mask)
        if inputs.mask.shape[1]:
            steps.scatter_(1, last_tokens(inputs.mask)[:, None], True)
    return outcome(process(inputs.rewards, steps, inputs.mask, inputs.group))

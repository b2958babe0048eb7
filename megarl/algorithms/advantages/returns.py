"""Estimators of the REINFORCE kind: rewards to come, over a baseline that no model learns."""

from __future__ import annotations

import torch
from torch import Tensor

from megarl.algorithms.advantages.base import (
    AdvantageInputs,
    Advantages,
    Normalization,
    outcome,
    register,
    spread,
)
from megarl.algorithms.advantages.scan import Compaction, discounted_sums, has_holes
from megarl.algorithms.groups import Groups
from megarl.algorithms.masked import at_least_fp32, moments, row_chunks, whiten


@torch.no_grad()
def rewards_to_go(
    rewards: Tensor, mask: Tensor, gamma: float = 1.0, baselines: Tensor | None = None
) -> Tensor:
    """float [B, R]: G_t = sum over k >= 0 of gamma^k r_{t+k}, minus the row's baseline; 0 outside.

    rewards: float [B, R]; mask: bool [B, R], whose holes are stepped over; baselines: float [B] or
    None (0).
    """
    found = torch.empty_like(rewards)
    for rows in row_chunks(rewards):
        inside = mask[rows]
        r = at_least_fp32(torch.where(inside, rewards[rows], 0.0))
        # Without a discount a hole counts for nothing, and need not be closed.
        if gamma == 1 or not has_holes(inside):
            to_go = discounted_sums(r, gamma)
        else:
            holes = Compaction(inside)
            to_go = holes.open(discounted_sums(holes.close(r), gamma))
        if baselines is not None:
            to_go -= baselines[rows, None]
        found[rows] = torch.where(inside, to_go, 0.0)
    return found


def _token_moments(inputs: AdvantageInputs, advantages: Tensor) -> Tensor:
    return moments(advantages, inputs.mask)


whitening = Normalization(3, _token_moments, whiten)
"""Zero mean and unit variance over the response tokens of the step."""


@register("reinforce_plus_plus", normalization=whitening)
def _reinforce_plus_plus(inputs: AdvantageInputs) -> Advantages:
    """Discounted rewards to come, whitened: Hu et al. 2025 (arXiv:2501.03262)."""
    return outcome(rewards_to_go(inputs.rewards, inputs.mask, inputs.gamma))


@register("reinforce_plus_plus_baseline", needs_groups=True, normalization=whitening)
def _reinforce_plus_plus_baseline(inputs: AdvantageInputs) -> Advantages:
    """Score minus its group's mean, whitened over the step: the same paper, for several samples."""
    with torch.no_grad():
        deviations = Groups(inputs.group).deviations(inputs.scores)
        return outcome(spread(deviations, inputs.mask, inputs.scores.dtype))


@register("remax", needs_greedy=True)
def _remax(inputs: AdvantageInputs) -> Advantages:
    """Rewards to come minus the score of the greedy answer: Li et al. 2023 (arXiv:2310.10505)."""
    return outcome(rewards_to_go(inputs.rewards, inputs.mask, 1.0, inputs.baselines))

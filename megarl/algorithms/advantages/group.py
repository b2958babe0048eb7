"""Estimators that compare the scores of a prompt's samples; groups may be of unequal size.

A sample alone in its group has nothing to be compared with: its advantage is 0, and so are those of
a group whose scores are all equal.
"""

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
from megarl.algorithms.groups import Groups
from megarl.algorithms.masked import token_counts


@torch.no_grad()
def grpo(
    scores: Tensor, group: Tensor, mask: Tensor, norm_by_std: bool = True, eps: float = 1e-6
) -> Tensor:
    """float [B, R]: (score - group mean) / (unbiased group std + eps) on every response token.

    Shao et al. 2024 (arXiv:2402.03300), sec. 4.1.2; `norm_by_std=False` leaves the division out:
    Dr. GRPO, Liu et al. 2025 (arXiv:2503.20783). scores: float [B]; group: int [B]; mask: bool
    [B, R].
    """
    groups = Groups(group)
    advantage = groups.deviations(scores)
    if norm_by_std:
        variance = groups.sum(advantage.square()) / (groups.size - 1).clamp(min=1)
        advantage = advantage / (variance.sqrt() + eps)
    return spread(advantage, mask, scores.dtype)


@torch.no_grad()
def rloo(scores: Tensor, group: Tensor, mask: Tensor) -> Tensor:
    """float [B, R]: score minus the mean score of the group's other samples.

    Ahmadian et al. 2024 (arXiv:2402.14740), eq. 8. Shapes as in `grpo`.
    """
    groups = Groups(group)
    # s - (n m - s) / (n - 1) = (s - m) n / (n - 1)
    factor = groups.size / (groups.size - 1).clamp(min=1)
    return spread(groups.deviations(scores) * factor, mask, scores.dtype)


@torch.no_grad()
def opo(scores: Tensor, group: Tensor, mask: Tensor) -> Tensor:
    """float [B, R]: score minus the optimal baseline, the group's mean weighted by length.

    Hao et al. 2025 (arXiv:2505.23585): b = sum(length * score) / sum(length), which gives the least
    variance where the gradients of tokens are equally large and orthogonal. length: response
    tokens. Shapes as in `grpo`.
    """
    groups, length = Groups(group), token_counts(mask).double()
    tokens = groups.sum(length).clamp(min=1)
    baseline = groups.sum(length * scores.double()) / tokens
    advantage = torch.where(groups.differ(scores), scores.double() - baseline, 0.0)
    return spread(advantage, mask, scores.dtype)


@torch.no_grad()
def passk(scores: Tensor, group: Tensor, mask: Tensor) -> Tensor:
    """float [B, R]: best minus second best score of the group on its best sample, 0 on others.

    The gradient of the expected best of k, k = the group's size: Tang et al. 2025
    (arXiv:2503.19595), which weighs each sample by what the best would lose without it. Shapes as
    in `grpo`.
    """
    groups = Groups(group)
    rank, last = groups.ranks(scores), groups.size - 1
    lowest = groups.least(scores)
    second = groups.greatest(torch.where(rank == last, lowest, scores))
    is_best = (rank == last) & (groups.size > 1)
    advantage = torch.where(is_best, scores.double() - second.double(), 0.0)
    return spread(advantage, mask, scores.dtype)


@torch.no_grad()
def gpg_scale(scores: Tensor, group: Tensor, mask: Tensor) -> Tensor:
    """float64 [2]: responses, and those whose group's scores differ; shapes as in `grpo`.

    GPG multiplies by their quotient: Chu et al. 2025 (arXiv:2504.02546), alpha = B / (B - M), as
    the M responses without a signal dilute a mean over all B. Empty responses are in no such mean.
    """
    counted = mask.any(-1)
    signal = counted & Groups(group).differ(scores)
    return torch.stack([counted.sum(), signal.sum()]).double()


@register("grpo", needs_groups=True)
def _grpo(inputs: AdvantageInputs) -> Advantages:
    return outcome(grpo(inputs.scores, inputs.group, inputs.mask))


@register("grpo_no_std", needs_groups=True)
def _grpo_no_std(inputs: AdvantageInputs) -> Advantages:
    return outcome(grpo(inputs.scores, inputs.group, inputs.mask, norm_by_std=False))


@register("rloo", needs_groups=True)
def _rloo(inputs: AdvantageInputs) -> Advantages:
    return outcome(rloo(inputs.scores, inputs.group, inputs.mask))


@register("opo", needs_groups=True)
def _opo(inputs: AdvantageInputs) -> Advantages:
    return outcome(opo(inputs.scores, inputs.group, inputs.mask))


@register("grpo_passk", needs_groups=True)
def _passk(inputs: AdvantageInputs) -> Advantages:
    return outcome(passk(inputs.scores, inputs.group, inputs.mask))


def _gpg_sums(inputs: AdvantageInputs, advantages: Tensor) -> Tensor:
    return gpg_scale(inputs.scores, inputs.group, inputs.mask)


def _gpg_apply(advantages: Tensor, mask: Tensor, sums: Tensor) -> Tensor:
    scale = sums[0] / sums[1].clamp(min=1)
    return advantages * scale.to(advantages)


@register("gpg", needs_groups=True, normalization=Normalization(2, _gpg_sums, _gpg_apply))
def _gpg(inputs: AdvantageInputs) -> Advantages:
    return outcome(grpo(inputs.scores, inputs.group, inputs.mask, norm_by_std=False))

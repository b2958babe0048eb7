"""Losses whose ratio is one of the whole response.

Both are written token by token: the response's mean enters as a number without gradient, and each
token adds its own gradient, as in eq. 13 of GSPO. Value and gradient are those of the formula with
one term per response, and a row may be spread over ranks.
"""

from __future__ import annotations

import torch
from torch import Tensor

from megarl.algorithms.logprobs import safe_exp
from megarl.algorithms.losses import weighted_sum
from megarl.algorithms.policy.base import policy_stats, register
from megarl.algorithms.policy.clipped import surrogate
from megarl.algorithms.policy.inputs import PolicyLossInputs, PolicyLossOptions
from megarl.algorithms.stats import PolicyStats


def _geometric_mean(term: Tensor, inputs: PolicyLossInputs) -> Tensor:
    """float [B, R]: exp of the mean of term over its response; gradient: that value, per token."""
    sums = inputs.sequence_sums
    if sums is None:
        total, count = term.detach().double().sum(-1), inputs.mask.sum(-1)
    else:
        total, count = sums.to(term.device).unbind(-1)
    mean = (total / count.clamp(min=1)).to(term.dtype)[:, None]
    return safe_exp(mean + (term - term.detach()))


def _log_ratio(inputs: PolicyLossInputs, options: PolicyLossOptions) -> Tensor:
    return inputs.log_ratio()


@register("gspo", sequence_term=_log_ratio)
def gspo(inputs: PolicyLossInputs, options: PolicyLossOptions) -> tuple[Tensor, PolicyStats]:
    """PPO's surrogate with the response's ratio s = (p_new(y) / p_old(y))^(1 / |y|).

    Zheng et al. 2025 (arXiv:2507.18071), eq. 5, as GSPO-token: s_t = sg(s) * p_new(y_t) / sg(same).
    The paper aggregates with seq-mean-token-mean, and clips at 3e-4 below and 4e-4 above.
    """
    log_ratio, advantages = inputs.log_ratio(), inputs.masked_advantages()
    ratio = _geometric_mean(log_ratio, inputs)
    per_token, clipped = surrogate(ratio, advantages, options)
    loss = weighted_sum(per_token, inputs.mask, inputs.weights)
    return loss, policy_stats(inputs, log_ratio, clipped=clipped)


def _clipped_log_ratio(inputs: PolicyLossInputs, options: PolicyLossOptions) -> Tensor:
    """log r, cut above where A > 0 and below where it is not: the side that PPO's minimum cuts."""
    log_ratio = inputs.log_ratio()
    high = log_ratio.clamp(max=options.clip_ratio_high)
    low = log_ratio.clamp(min=-options.clip_ratio_low)
    return torch.where(inputs.masked_advantages() > 0, high, low)


@register("geo_mean", sequence_term=_clipped_log_ratio)
def geo_mean(inputs: PolicyLossInputs, options: PolicyLossOptions) -> tuple[Tensor, PolicyStats]:
    """-A times the geometric mean over the response of its tokens' clipped ratios.

    GMPO, Zhao et al. 2025 (arXiv:2507.20673): each ratio is kept within exp(-clip_ratio_low) and
    exp(clip_ratio_high), on the side that its advantage's sign asks for; the paper uses 0.4 for
    both, and seq-mean-token-mean.
    """
    log_ratio, advantages = inputs.log_ratio(), inputs.masked_advantages()
    term = _clipped_log_ratio(inputs, options)
    per_token = -advantages * _geometric_mean(term, inputs)
    loss = weighted_sum(per_token, inputs.mask, inputs.weights)
    return loss, policy_stats(inputs, log_ratio, clipped=term != log_ratio)

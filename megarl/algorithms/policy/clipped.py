"""PPO's clipped surrogate, and its two kin that treat tokens of high covariance apart."""

from __future__ import annotations

import torch
from torch import Tensor

from megarl.algorithms.logprobs import safe_exp
from megarl.algorithms.losses import weighted_sum
from megarl.algorithms.policy.base import policy_stats, register
from megarl.algorithms.policy.covariance import clip_cov_selection, kl_cov_selection
from megarl.algorithms.policy.inputs import PolicyLossInputs, PolicyLossOptions
from megarl.algorithms.stats import PolicyStats


def surrogate(
    ratio: Tensor, advantages: Tensor, options: PolicyLossOptions
) -> tuple[Tensor, Tensor]:
    """max(-A r, -A clip(r, 1 - low, 1 + high)), float [B, R], and where the clipped one is larger.

    Schulman et al. 2017 (arXiv:1707.06347), eq. 7, per token; ratio, advantages: float [B, R].
    """
    plain = -advantages * ratio
    kept = ratio.clamp(1 - options.clip_ratio_low, 1 + options.clip_ratio_high)
    clipped = -advantages * kept
    return torch.maximum(plain, clipped), clipped > plain


def dual_clip(
    per_token: Tensor, advantages: Tensor, clip_ratio_c: float | None
) -> tuple[Tensor, Tensor]:
    """At most -A * clip_ratio_c where A < 0, float [B, R], and where that cut something.

    Ye et al. 2020 (arXiv:1912.09729), eq. 5; clip_ratio_c: above 1, or None (off).
    """
    if clip_ratio_c is None:
        return per_token, torch.zeros_like(per_token, dtype=torch.bool)
    ceiling = -advantages * clip_ratio_c
    is_cut = (advantages < 0) & (per_token > ceiling)
    return torch.where(is_cut, ceiling, per_token), is_cut


@register("ppo")
def ppo(inputs: PolicyLossInputs, options: PolicyLossOptions) -> tuple[Tensor, PolicyStats]:
    """`surrogate` and `dual_clip` of each token's own ratio."""
    log_ratio, advantages = inputs.log_ratio(), inputs.masked_advantages()
    per_token, clipped = surrogate(safe_exp(log_ratio), advantages, options)
    per_token, dual = dual_clip(per_token, advantages, options.clip_ratio_c)
    loss = weighted_sum(per_token, inputs.mask, inputs.weights)
    return loss, policy_stats(inputs, log_ratio, clipped=clipped, dual_clipped=dual)


@register("clip_cov", selection=clip_cov_selection)
def clip_cov(inputs: PolicyLossInputs, options: PolicyLossOptions) -> tuple[Tensor, PolicyStats]:
    """PPO, with nothing of the selected tokens: neither value nor gradient.

    Clip-Cov of Cui et al. 2025 (arXiv:2505.22617): tokens drawn at random from those whose
    covariance of log-prob and advantage is high, which would lower the entropy most.
    """
    assert inputs.selected is not None
    log_ratio, advantages = inputs.log_ratio(), inputs.masked_advantages()
    per_token, clipped = surrogate(safe_exp(log_ratio), advantages, options)
    per_token, dual = dual_clip(per_token, advantages, options.clip_ratio_c)
    loss = weighted_sum(per_token, inputs.mask & ~inputs.selected, inputs.weights)
    stats = policy_stats(
        inputs, log_ratio, clipped=clipped, dual_clipped=dual, selected=inputs.selected
    )
    return loss, stats


@register("kl_cov", selection=kl_cov_selection)
def kl_cov(inputs: PolicyLossInputs, options: PolicyLossOptions) -> tuple[Tensor, PolicyStats]:
    """-A r, plus ppo_kl_coef * |log r| on the selected tokens; nothing is clipped.

    KL-Cov of Cui et al. 2025 (arXiv:2505.22617): the tokens of the highest covariance of log-prob
    and advantage are held near the old policy.
    """
    assert inputs.selected is not None
    log_ratio, advantages = inputs.log_ratio(), inputs.masked_advantages()
    penalty = torch.where(inputs.selected, options.ppo_kl_coef * log_ratio.abs(), 0.0)
    per_token = penalty - advantages * safe_exp(log_ratio)
    loss = weighted_sum(per_token, inputs.mask, inputs.weights)
    return loss, policy_stats(inputs, log_ratio, selected=inputs.selected)

"""Losses that weigh each token's gradient by its ratio, and cut none off."""

from __future__ import annotations

import torch
from torch import Tensor

from megarl.algorithms.logprobs import finite_logprobs, safe_exp
from megarl.algorithms.losses import weighted_sum
from megarl.algorithms.policy.base import policy_stats, register
from megarl.algorithms.policy.inputs import PolicyLossInputs, PolicyLossOptions
from megarl.algorithms.stats import PolicyStats


@register("cispo")
def cispo(inputs: PolicyLossInputs, options: PolicyLossOptions) -> tuple[Tensor, PolicyStats]:
    """-sg(clip(r, 1 - low, 1 + high)) A log p: the ratio is a weight, and passes no gradient.

    MiniMax 2025 (arXiv:2506.13585), which aggregates with token-mean and leaves the lower bound
    out in effect (a clip_ratio_low near 1).
    """
    log_ratio, advantages = inputs.log_ratio(), inputs.masked_advantages()
    ratio = safe_exp(log_ratio.detach())
    kept = ratio.clamp(1 - options.clip_ratio_low, 1 + options.clip_ratio_high)
    per_token = -kept * advantages * finite_logprobs(inputs.logprobs)
    loss = weighted_sum(per_token, inputs.mask, inputs.weights)
    return loss, policy_stats(inputs, log_ratio, clipped=kept != ratio)


@register("sapo")
def sapo(inputs: PolicyLossInputs, options: PolicyLossOptions) -> tuple[Tensor, PolicyStats]:
    """-A (4 / tau) sigmoid(tau (r - 1)), tau = tau_pos where A > 0, tau_neg elsewhere.

    Gao et al. 2025 (arXiv:2511.20347): a gate that closes smoothly; its gradient by r is 1 at
    r = 1. The paper aggregates with seq-mean-token-mean.
    """
    log_ratio, advantages = inputs.log_ratio(), inputs.masked_advantages()
    tau = torch.full_like(advantages, options.tau_neg)
    tau = tau.masked_fill_(advantages > 0, options.tau_pos)
    gate = torch.sigmoid(tau * (safe_exp(log_ratio) - 1)) * (4 / tau)
    loss = weighted_sum(-gate * advantages, inputs.mask, inputs.weights)
    return loss, policy_stats(inputs, log_ratio)


@register("reinforce")
def reinforce(inputs: PolicyLossInputs, options: PolicyLossOptions) -> tuple[Tensor, PolicyStats]:
    """-A log p: Williams 1992, eq. 4; right for samples of the policy itself, one update each."""
    per_token = -inputs.masked_advantages() * finite_logprobs(inputs.logprobs)
    loss = weighted_sum(per_token, inputs.mask, inputs.weights)
    return loss, policy_stats(inputs, inputs.log_ratio().detach())

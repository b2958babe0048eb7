"""The policy's entropy: a bonus in the loss, and an estimate that costs nothing."""

from __future__ import annotations

import torch
from torch import Tensor

from megarl.algorithms.logprobs import finite_logprobs
from megarl.algorithms.losses import weighted_sum


def entropy_loss(entropy: Tensor, mask: Tensor, weights: Tensor, coef: float) -> Tensor:
    """Scalar: -coef * weighted sum of the entropy, this part's share of the global loss.

    entropy: float [B, R], nats, over the whole vocabulary; mask: bool [B, R]; weights: of
    `token_weights`. Where coef is 0 nobody needs `entropy`: see `sampled_entropy`.
    """
    return -coef * weighted_sum(entropy, mask, weights)


def sampled_entropy(logprobs: Tensor, mask: Tensor) -> Tensor:
    """float [B, R], nats: -logprobs inside the mask, 0 outside, without gradient.

    Its mean over tokens that the policy sampled is an unbiased estimate of the entropy,
    E[-log p(y)], and needs nothing over the vocabulary. logprobs: float [B, R], of the sampled
    tokens, under the policy that sampled them; mask: bool [B, R].
    """
    return torch.where(mask, -finite_logprobs(logprobs.detach()), 0.0)

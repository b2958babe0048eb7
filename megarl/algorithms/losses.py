"""Losses as weighted sums over tokens, and the loss of the critic; `policy` has the policy's.

The weights of `token_weights` hold the global denominators, so a loss is `(per_token * weights)`
summed: the parts of any split over ranks and micro-batches add up to the loss of the whole batch.
To correct for the engine's own log-probs, multiply the weights by those of `corrections`.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from megarl.algorithms.masked import at_least_fp32
from megarl.algorithms.stats import ValueStats
from megarl.errors import ConfigError

LossAggMode = Literal[
    "token-mean", "seq-mean-token-sum", "seq-mean-token-mean", "seq-mean-token-sum-norm"
]


def token_weights(
    mask: Tensor,
    mode: LossAggMode,
    *,
    global_tokens: Tensor | float,
    global_sequences: Tensor | float,
    norm_length: float | None = None,
) -> Tensor:
    """float32 [B, R]: what each token counts in the global loss, 0 outside the mask.

    mask: bool [B, R], whole rows. global_tokens and global_sequences: how many tokens, and rows
    with any, the whole optimizer step has on all ranks; read only by the modes that divide by them.
    norm_length: tokens, the constant of seq-mean-token-sum-norm (Dr. GRPO), usually
    max_response_length. ConfigError for an unknown mode or a norm_length that is missing.
    """
    if mode not in get_args(LossAggMode):
        known = ", ".join(get_args(LossAggMode))
        raise ConfigError(f"algorithm.loss_agg_mode {mode!r} is unknown: one of {known}")
    denominator = global_tokens if mode == "token-mean" else global_sequences
    # A global count of 0 means that every mask is empty: the loss is then 0, not 0/0.
    denominator = torch.as_tensor(denominator, dtype=torch.float64, device=mask.device).clamp(min=1)
    per_row = (1 / denominator).expand(mask.shape[0])
    if mode == "seq-mean-token-mean":
        per_row = per_row / mask.sum(-1).clamp(min=1)
    if mode == "seq-mean-token-sum-norm":
        if norm_length is None or norm_length <= 0:
            raise ConfigError(
                f"loss_agg_mode seq-mean-token-sum-norm divides by norm_length, which is "
                f"{norm_length}: give a positive one, such as max_response_length"
            )
        per_row = per_row / norm_length
    return torch.where(mask, per_row[:, None], 0.0).float()


def weighted_sum(per_token: Tensor, mask: Tensor, weights: Tensor) -> Tensor:
    """Scalar: sum of per_token * weights inside the mask; also for entropy and KL terms."""
    return (torch.where(mask, per_token, 0.0) * torch.where(mask, weights, 0.0)).sum()


def value_loss(
    values: Tensor,
    old_values: Tensor,
    returns: Tensor,
    mask: Tensor,
    weights: Tensor,
    *,
    value_clip: float | None,
) -> tuple[Tensor, ValueStats]:
    """Half squared error, this part's share of the global loss (scalar), and sums for metrics.

    With value_clip the larger of the errors of v and of v kept within value_clip of old_values, as
    in OpenAI's PPO (Engstrom et al. 2020, arXiv:2005.12729, sec. 3); None is off. All tensors
    [B, R]; weights from `token_weights`.
    """
    if value_clip is not None and value_clip <= 0:
        raise ConfigError(f"algorithm.value_clip is {value_clip}: give a positive number, or null")
    values = torch.where(mask, at_least_fp32(values), 0.0)
    returns = torch.where(mask, at_least_fp32(returns), 0.0)
    plain = (values - returns).square()
    per_token, is_clipped = plain, torch.zeros_like(mask)
    if value_clip is not None:
        old_values = torch.where(mask, at_least_fp32(old_values), 0.0)
        near = old_values + (values - old_values).clamp(-value_clip, value_clip)
        clipped = (near - returns).square()
        per_token, is_clipped = torch.maximum(plain, clipped), clipped > plain
    loss = weighted_sum(0.5 * per_token, mask, weights)

    with torch.no_grad():
        v, r = values.double(), returns.double()
        stats = ValueStats(
            tokens=mask.sum().double(),
            clipped=(is_clipped & mask).sum().double(),
            values=v.sum(),
            returns=r.sum(),
            returns_squared=r.square().sum(),
            error=(r - v).sum(),
            error_squared=(r - v).square().sum(),
        )
    return loss, stats

"""Scores, process rewards and the KL penalty, as rewards of tokens and of sequences."""

from __future__ import annotations

import torch
from torch import Tensor

from megarl.algorithms.masked import masked_sum


def last_tokens(mask: Tensor) -> Tensor:
    """int64 [B]: column of the last True of each row, 0 in an empty one; mask: bool [B, R].

    Masks may have holes (tool output), so it is not the length.
    """
    if mask.shape[1] == 0:
        return torch.zeros(mask.shape[0], dtype=torch.int64, device=mask.device)
    last = mask.shape[1] - 1 - mask.flip(-1).byte().argmax(-1)
    return torch.where(mask.any(-1), last, 0)


def token_level_rewards(
    score: Tensor,
    kl: Tensor | None,
    mask: Tensor,
    kl_coef: float,
    process: Tensor | None = None,
) -> Tensor:
    """float [B, R]: process - kl_coef * kl on every token, plus the score on the last one.

    score: float [B]; kl: float [B, R] or None (no penalty); mask: bool [B, R]; process: float
    [B, R] or None, rewards of tokens or steps. An empty response has no token to carry its score:
    its row is 0.
    """
    rewards = torch.zeros_like(mask, dtype=score.dtype)
    if process is not None:
        rewards = rewards + torch.where(mask, process, 0.0)
    if kl is not None:
        rewards = rewards - kl_coef * torch.where(mask, kl, 0.0)
    if mask.shape[1]:
        at_end = torch.where(mask.any(-1), score, 0.0).to(rewards.dtype)
        rewards.scatter_add_(1, last_tokens(mask)[:, None], at_end[:, None])
    return rewards


def sequence_rewards(score: Tensor, kl: Tensor | None, mask: Tensor, kl_coef: float) -> Tensor:
    """float [B]: score - kl_coef * sum of kl; unlike the token rewards it keeps empty responses."""
    return score if kl is None else score - kl_coef * masked_sum(kl, mask, -1)

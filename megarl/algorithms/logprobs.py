"""Differences of log-probs that stay finite, whatever an engine reports."""

from __future__ import annotations

import torch
from torch import Tensor

from megarl.algorithms.masked import at_least_fp32

_MAX_EXPONENT = 20.0
_LEAST_LOGPROB = -1e4


def safe_exp(x: Tensor) -> Tensor:
    """exp(x) with x kept within +-20: one broken token must not turn a batch into inf."""
    return x.clamp(-_MAX_EXPONENT, _MAX_EXPONENT).exp()


def finite_logprobs(logprobs: Tensor) -> Tensor:
    """logprobs in fp32 or better, and at least -1e4, so that the difference of two is finite.

    A token that an engine says it could not have sampled has -inf; its gradient is 0. NaN stays.
    """
    return at_least_fp32(logprobs).clamp(min=_LEAST_LOGPROB)


def log_ratio(logprobs: Tensor, other: Tensor, mask: Tensor) -> Tensor:
    """float [B, R]: logprobs - other inside the mask, 0 outside; finite where they are -inf."""
    return torch.where(mask, finite_logprobs(logprobs) - finite_logprobs(other), 0.0)

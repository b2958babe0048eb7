"""What a policy loss reads: the tensors of a micro-batch, and numbers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from megarl.algorithms.logprobs import log_ratio
from megarl.algorithms.masked import at_least_fp32
from megarl.errors import ConfigError


@dataclass(frozen=True, slots=True)
class PolicyLossInputs:
    """All that a policy loss may read; the rows of a micro-batch."""

    logprobs: Tensor
    """float [B, R], of the policy that is trained: what gradients flow to."""
    old_logprobs: Tensor
    """float [B, R], of the policy that the step began with."""
    advantages: Tensor
    """float [B, R]."""
    mask: Tensor
    """bool [B, R]."""
    weights: Tensor
    """float [B, R], of `losses.token_weights`, times importance weights where there are any."""
    entropy: Tensor | None = None
    """float [B, R], nats; only counted. None: it is estimated from logprobs."""
    selected: Tensor | None = None
    """bool [B, R], of `covariance.select`; only for losses with `needs_selection`."""
    sequence_sums: Tensor | None = None
    """float64 [B, 2], of `sequence_sums`, added up over the parts of each row; None: these rows are
    whole. Only for losses with `needs_sequences`, where a row is spread over ranks."""

    def log_ratio(self) -> Tensor:
        """float [B, R]: log of new / old probability, 0 outside the mask."""
        return log_ratio(self.logprobs, self.old_logprobs, self.mask)

    def masked_advantages(self) -> Tensor:
        """float [B, R]: advantages, 0 outside the mask."""
        return torch.where(self.mask, at_least_fp32(self.advantages), 0.0)


@dataclass(frozen=True, slots=True)
class PolicyLossOptions:
    """Numbers that policy losses read, each only some; ConfigError for one out of its range."""

    clip_ratio_low: float = 0.2
    """Ratios are kept at or above 1 - this; geo_mean: log ratios at or above minus this."""
    clip_ratio_high: float = 0.2
    """Ratios are kept at or below 1 + this; geo_mean: log ratios at or below this."""
    clip_ratio_c: float | None = None
    """ppo and clip_cov: dual clip, above 1; None is off."""
    tau_pos: float = 1.0
    """sapo: how fast the gate closes where the advantage is positive."""
    tau_neg: float = 1.05
    """sapo: how fast it closes where it is not."""
    clip_cov_ratio: float = 0.0002
    """clip_cov: share of the mini-batch's tokens that it picks."""
    clip_cov_lb: float = 1.0
    """clip_cov: it picks from tokens of a covariance above this ..."""
    clip_cov_ub: float = 5.0
    """... and below this."""
    kl_cov_ratio: float = 0.0002
    """kl_cov: share of the mini-batch's tokens that it picks."""
    ppo_kl_coef: float = 1.0
    """kl_cov: weight of the penalty on selected tokens."""

    def __post_init__(self) -> None:
        low, high, dual = self.clip_ratio_low, self.clip_ratio_high, self.clip_ratio_c
        if not 0 <= low < 1:
            raise ConfigError(
                f"algorithm.clip_ratio_low is {low}: the ratio is kept >= 1 - low > 0"
            )
        if not high >= 0:
            raise ConfigError(f"algorithm.clip_ratio_high is {high}: it cannot be negative")
        if dual is not None and not dual > 1:
            raise ConfigError(
                f"algorithm.clip_ratio_c is {dual}: dual clipping cuts ratios above it, so it must "
                "be greater than 1 (usually 3), or null"
            )
        for name in ("tau_pos", "tau_neg"):
            if not getattr(self, name) > 0:
                raise ConfigError(
                    f"algorithm.{name} is {getattr(self, name)}: the gate divides by it, so it "
                    "must be positive (usually 1)"
                )
        if not self.ppo_kl_coef >= 0:
            raise ConfigError(f"algorithm.ppo_kl_coef is {self.ppo_kl_coef}: give 0 or more")
        for name in ("clip_cov_ratio", "kl_cov_ratio"):
            if not 0 < getattr(self, name) <= 1:
                raise ConfigError(
                    f"algorithm.{name} is {getattr(self, name)}: it is a share of the tokens, "
                    "above 0 and at most 1"
                )
        if not self.clip_cov_lb < self.clip_cov_ub:
            raise ConfigError(
                f"algorithm.clip_cov_lb {self.clip_cov_lb} is not below clip_cov_ub "
                f"{self.clip_cov_ub}: no token lies between them"
            )

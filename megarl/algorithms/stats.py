"""Sums that losses hand out: they add over micro-batches and ranks, and are divided once, at last.

A mean of means depends on how rows were split; a sum divided by the global count does not.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Self

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Sums:
    """A record of float64 scalars that add up; travels between ranks as one vector."""

    def __add__(self, other: Self) -> Self:
        return self.from_vector(self.to_vector() + other.to_vector())

    def to_vector(self) -> Tensor:
        """float64 [number of fields], in field order: what an all-reduce sums."""
        return torch.stack([getattr(self, field.name) for field in fields(self)])

    @classmethod
    def from_vector(cls, vector: Tensor) -> Self:
        """The inverse of `to_vector`."""
        return cls(*vector.unbind())

    @classmethod
    def zero(cls, device: torch.device | str = "cpu") -> Self:
        """The sum of nothing, for a rank without rows."""
        return cls.from_vector(torch.zeros(len(fields(cls)), dtype=torch.float64, device=device))


@dataclass(frozen=True, slots=True)
class PolicyStats(Sums):
    """Sums over response tokens of one policy loss, of whatever kind."""

    tokens: Tensor
    """Response tokens: the denominator of all others."""
    clipped: Tensor
    """Tokens whose ratio the clip changed, to a larger loss where that is the kind's rule."""
    dual_clipped: Tensor
    """Tokens with a negative advantage whose loss was cut at clip_ratio_c."""
    ratio: Tensor
    """new / old probability of the token, in all kinds."""
    kl: Tensor
    """k1, old - new: signed, the usual ppo_kl."""
    kl_k3: Tensor
    """k3: never negative, smaller variance."""
    entropy: Tensor
    """nats; where none was given, its estimate by the log-probs (`entropy.sampled_entropy`)."""
    selected: Tensor
    """Tokens that clip_cov or kl_cov treat apart; 0 in other kinds."""

    def metrics(self) -> dict[str, float]:
        """Token means under the usual names."""
        mean = (self.to_vector() / self.tokens.clamp(min=1)).tolist()
        names = (
            "pg_clipfrac",
            "pg_clipfrac_lower",
            "ratio_mean",
            "ppo_kl",
            "ppo_kl_k3",
            "entropy",
            "pg_selected",
        )
        return {f"actor/{name}": value for name, value in zip(names, mean[1:], strict=True)}


@dataclass(frozen=True, slots=True)
class ValueStats(Sums):
    """Sums over response tokens of one value loss."""

    tokens: Tensor
    clipped: Tensor
    """Tokens whose clipped error was the larger one."""
    values: Tensor
    returns: Tensor
    returns_squared: Tensor
    error: Tensor
    """returns - values."""
    error_squared: Tensor

    def metrics(self) -> dict[str, float]:
        """Token means, and the explained variance 1 - Var(returns - values) / Var(returns)."""
        mean = self.to_vector() / self.tokens.clamp(min=1)
        _, clipped, values, returns, returns_squared, error, error_squared = mean.tolist()
        variance = returns_squared - returns**2
        residual = error_squared - error**2
        return {
            "critic/vf_clipfrac": clipped,
            "critic/values_mean": values,
            "critic/returns_mean": returns,
            "critic/vf_mse": error_squared,
            # Of constant returns there is nothing to explain.
            "critic/vf_explained_var": 1 - residual / variance if variance > 1e-12 else 0.0,
        }


@dataclass(frozen=True, slots=True)
class CorrectionStats(Sums):
    """Sums over response tokens of off-policy corrections.

    Without any correction they still tell whether one is needed.
    """

    tokens: Tensor
    ratio: Tensor
    """trainer / rollout probability of the token, or of its response where rollout_is is sequence;
    before truncation."""
    ratio_squared: Tensor
    weight: Tensor
    """As applied: truncated, 0 where masked or rejected."""
    truncated: Tensor
    """Tokens whose weight was cut to a threshold."""
    masked: Tensor
    """Tokens that count for nothing: a weight of 0, or rejected."""
    gen_kl_error: Tensor
    """k3 of KL(rollout || trainer) by the rollout's own samples; never negative."""

    def metrics(self, max_ratio: Tensor | float) -> dict[str, float]:
        """Token means, the effective share of the sample, and the largest ratio of all parts."""
        mean = (self.to_vector() / self.tokens.clamp(min=1)).tolist()
        _, ratio, squared, weight, truncated, masked, kl = mean
        return {
            "gen_kl_error": kl,
            # (sum r)^2 / (n sum r^2): 1 where all ratios are equal, 1 / n where one counts alone.
            "rollout_corr/eff_sample_size": ratio**2 / squared if squared > 0 else 1.0,
            "rollout_corr/ratio_mean": ratio,
            "rollout_corr/ratio_max": float(max_ratio),
            "rollout_corr/weight_mean": weight,
            "rollout_corr/truncated_fraction": truncated,
            "rollout_corr/masked_fraction": masked,
        }

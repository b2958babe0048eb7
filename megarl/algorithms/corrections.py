"""Corrections for samples that another policy made: an engine that rounds, or older weights.

All start from r_t = exp(log p_trainer - log p_rollout) of each token, or of its response, and give
weights that multiply those of `losses.token_weights`, and the tokens that are kept.

Truncated importance weights are TIS, Yao et al. 2025 ("Your efficient RL framework secretly brings
you off-policy RL training"); weights that are 0 outside a range are IcePop, Ling Team 2025
(arXiv:2510.18855); rejection and the veto are Liu et al. 2025 ("When speed kills stability").

Decoupled PPO, Hilton et al. 2021 (arXiv:2110.00641), used by AReaL, Fu et al. 2025
(arXiv:2505.24298), is the same product: its loss is (p_prox / p_behav) times the surrogate
of p_new / p_prox. With the trainer's log-probs at the step's start as the proximal policy and the
rollout's as the behaviour, stale weights included, the first factor is the token weight given here
and `old_logprobs` of the policy loss are the proximal ones.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from megarl.algorithms.logprobs import log_ratio, safe_exp
from megarl.algorithms.masked import masked_sum
from megarl.algorithms.stats import CorrectionStats
from megarl.errors import ConfigError

ROLLOUT_IS = ("token", "sequence")
ROLLOUT_IS_MODES = ("truncate", "mask")
ROLLOUT_RS = ("token", "sequence", "geometric")


@dataclass(frozen=True, slots=True)
class CorrectionOptions:
    """What is corrected, and from where on; ConfigError for what contradicts itself."""

    rollout_is: str | None = None
    """Importance weights: of each "token", of the "sequence" (their product), or None: all 1."""
    rollout_is_threshold: float = 2.0
    """The largest weight."""
    rollout_is_threshold_lower: float | None = None
    """The least weight; None: 0 where they are truncated, 1 / rollout_is_threshold where masked."""
    rollout_is_mode: str = "truncate"
    """What is outside: "truncate" to the threshold, or "mask", a weight of 0 (IcePop)."""
    rollout_rs: str | None = None
    """Rejection of what is outside: each "token", or the response by its "sequence" ratio or its
    "geometric" mean; None: nothing."""
    rollout_rs_threshold: float = 2.0
    """The largest ratio that is kept."""
    rollout_rs_threshold_lower: float | None = None
    """The least ratio that is kept; None: 1 / rollout_rs_threshold."""
    rollout_token_veto_threshold: float | None = None
    """A response with a token whose ratio is below this is rejected whole; None is off."""

    def __post_init__(self) -> None:
        for key, known in (
            ("rollout_is", (None, *ROLLOUT_IS)),
            ("rollout_is_mode", ROLLOUT_IS_MODES),
            ("rollout_rs", (None, *ROLLOUT_RS)),
        ):
            value = getattr(self, key)
            if value not in known:
                names = ", ".join("null" if name is None else name for name in known)
                raise ConfigError(f"algorithm.{key} {value!r} is unknown: one of {names}")
        for key in ("rollout_is_threshold", "rollout_rs_threshold"):
            low, high = self.limits(key)
            if not 0 <= low < high:
                raise ConfigError(
                    f"algorithm.{key} is {high} and {key}_lower {low}: give 0 <= lower < upper "
                    "(lower is 1 / upper where a range needs one and none is given)"
                )
        veto = self.rollout_token_veto_threshold
        if veto is not None and not 0 < veto < 1:
            raise ConfigError(
                f"algorithm.rollout_token_veto_threshold is {veto}: give a ratio between 0 and 1 "
                "(1e-4, say), or null"
            )

    @property
    def is_on(self) -> bool:
        """Whether anything is weighted or left out."""
        return bool(
            self.rollout_is or self.rollout_rs or self.rollout_token_veto_threshold is not None
        )

    def limits(self, key: str) -> tuple[float, float]:
        """(lower, upper) of rollout_is_threshold or rollout_rs_threshold."""
        upper: float = getattr(self, key)
        lower: float | None = getattr(self, f"{key}_lower")
        if lower is None:
            truncates = key == "rollout_is_threshold" and self.rollout_is_mode == "truncate"
            lower = 0.0 if truncates or upper <= 0 else 1 / upper
        return lower, upper


@dataclass(frozen=True, slots=True)
class Correction:
    """What `correct` gives for the rows of one part."""

    weights: Tensor
    """float32 [B, R], 0 outside `kept`: multiplies the loss's token weights."""
    kept: Tensor
    """bool [B, R]: the mask without what was rejected; a caller that counts its denominators anew
    counts these. Tokens whose weight is 0 by `rollout_is_mode` stay in it, as in IcePop."""
    stats: CorrectionStats
    max_ratio: Tensor
    """float64 scalar, 0 without tokens: the largest over parts is that of all."""


@torch.no_grad()
def correct(
    old_logprobs: Tensor, rollout_logprobs: Tensor, mask: Tensor, options: CorrectionOptions
) -> Correction:
    """Weights and mask that make samples of the rollout's policy count as the trainer's.

    old_logprobs: float [B, R], of the trainer's policy at the step's start; rollout_logprobs: float
    [B, R], of the engine that sampled; mask: bool [B, R], whole rows. Ratios are kept within
    exp(+-20).
    """
    log_r = log_ratio(old_logprobs, rollout_logprobs, mask)
    ratio = _ratio(log_r, mask, options.rollout_is or "token")
    weights, truncated = _weights(ratio, mask, options)
    kept = mask & ~_rejected(log_r, mask, options)
    weights = torch.where(kept, weights, 0.0).float()

    def total(x: Tensor) -> Tensor:
        return masked_sum(x.double(), mask)

    stats = CorrectionStats(
        tokens=total(mask),
        ratio=total(ratio),
        ratio_squared=total(ratio.double().square()),
        weight=total(weights),
        truncated=total(truncated & kept),
        masked=total(weights == 0),
        gen_kl_error=total(safe_exp(log_r) - 1 - log_r),
    )
    largest = torch.where(mask, ratio, 0.0).double()
    max_ratio = largest.max() if largest.numel() else largest.new_zeros(())
    return Correction(weights, kept, stats, max_ratio)


def _ratio(log_r: Tensor, mask: Tensor, level: str) -> Tensor:
    """float [B, R]: the ratio of each token, or that of its response on all its tokens."""
    if level == "token":
        return safe_exp(log_r)
    total = log_r.double().sum(-1, keepdim=True)
    if level == "geometric":
        total = total / mask.sum(-1, keepdim=True).clamp(min=1)
    return safe_exp(total).to(log_r.dtype).expand_as(log_r)


def _weights(ratio: Tensor, mask: Tensor, options: CorrectionOptions) -> tuple[Tensor, Tensor]:
    """Weights before rejection, float [B, R], and bool [B, R]: which were cut."""
    if options.rollout_is is None:
        return torch.ones_like(ratio), torch.zeros_like(mask)
    low, high = options.limits("rollout_is_threshold")
    outside = (ratio < low) | (ratio > high)
    if options.rollout_is_mode == "mask":
        return torch.where(outside, 0.0, ratio), torch.zeros_like(mask)
    return ratio.clamp(low, high), outside


def _rejected(log_r: Tensor, mask: Tensor, options: CorrectionOptions) -> Tensor:
    """bool [B, R]."""
    rejected = torch.zeros_like(mask)
    if options.rollout_rs is not None:
        low, high = options.limits("rollout_rs_threshold")
        ratio = _ratio(log_r, mask, options.rollout_rs)
        rejected = (ratio < low) | (ratio > high)
    if options.rollout_token_veto_threshold is not None:
        below = mask & (safe_exp(log_r) < options.rollout_token_veto_threshold)
        rejected = rejected | below.any(-1, keepdim=True)
    return rejected

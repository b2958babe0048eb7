"""Which tokens clip_cov and kl_cov treat apart, picked from the whole mini-batch.

Cui et al. 2025 (arXiv:2505.22617): the covariance of a token is (log p - mean of log p) *
(A - mean of A), means over all response tokens; it is what the token takes from the entropy. The
pick is exact for any split over ranks and any order of rows: `covariance_sums` of each part are
added, each part takes its `candidates`, these are gathered, and each part marks its own with
`select`. log p and A are those that the step began with, so one pick serves all its micro-batches.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from megarl.algorithms.logprobs import finite_logprobs
from megarl.algorithms.policy.inputs import PolicyLossOptions
from megarl.algorithms.stats import Sums

_COLUMN_BITS = 32


@dataclass(frozen=True, slots=True)
class CovarianceSums(Sums):
    """Sums over response tokens, for the means."""

    tokens: Tensor
    logprobs: Tensor
    advantages: Tensor


@dataclass(frozen=True, slots=True)
class Candidates:
    """Tokens that may be picked, of one part of the mini-batch or of several joined."""

    priority: Tensor
    """float64 [c]: greater is picked first."""
    key: Tensor
    """int64 [c]: global row and column of the token; of equal priorities the least is first."""


def covariance_sums(old_logprobs: Tensor, advantages: Tensor, mask: Tensor) -> CovarianceSums:
    """What this part adds to the means; old_logprobs, advantages: float [B, R]; mask: bool."""
    inside = mask.double()
    return CovarianceSums(
        tokens=inside.sum(),
        logprobs=torch.where(mask, finite_logprobs(old_logprobs), 0.0).double().sum(),
        advantages=torch.where(mask, advantages, 0.0).double().sum(),
    )


def covariances(
    old_logprobs: Tensor, advantages: Tensor, mask: Tensor, sums: CovarianceSums
) -> Tensor:
    """float64 [B, R], 0 outside the mask; sums: of `covariance_sums`, added over all parts."""
    tokens = sums.tokens.clamp(min=1)
    away = finite_logprobs(old_logprobs).double() - sums.logprobs / tokens
    product = away * (advantages.double() - sums.advantages / tokens)
    return torch.where(mask, product, 0.0)


def num_selected(ratio: float, tokens: float) -> int:
    """How many tokens a share of all is: at least 1 of any, 0 of none."""
    return max(int(ratio * tokens), 1) if tokens > 0 else 0


def kl_cov_candidates(covariance: Tensor, mask: Tensor, rows: Tensor, count: int) -> Candidates:
    """The `count` tokens of the largest covariance, or all where there are fewer.

    covariance: float64 [B, R]; mask: bool [B, R]; rows: int64 [B], global row ids; count: of the
    whole mini-batch.
    """
    flat = torch.where(mask, covariance, -torch.inf).flatten()
    available = min(count, int(mask.sum()))
    least = flat.topk(available).values.min() if available else flat.new_tensor(torch.inf)
    index = (flat >= least).nonzero()[:, 0]
    return _best(Candidates(flat[index], _keys(index, rows, mask.shape[1])), available)


def clip_cov_candidates(
    covariance: Tensor,
    mask: Tensor,
    rows: Tensor,
    count: int,
    *,
    low: float,
    high: float,
    seed: int,
) -> Candidates:
    """`count` random tokens of those with a covariance within low and high, ends left out.

    The draw is a hash of the seed and the token's global place, so it is the same for any split.
    Shapes as in `kl_cov_candidates`.
    """
    eligible = mask & (covariance > low) & (covariance < high)
    keys = _keys(eligible.flatten().nonzero()[:, 0], rows, mask.shape[1])
    return _best(Candidates(_uniform(keys, seed), keys), count)


@dataclass(frozen=True, slots=True)
class Selection:
    """How a loss picks its tokens from a mini-batch."""

    share: Callable[[PolicyLossOptions], float]
    """Of all tokens: how many are picked."""
    candidates: Callable[[Tensor, Tensor, Tensor, int, PolicyLossOptions, int], Candidates]
    """(covariance, mask, rows, count, options, seed) -> a part's candidates; see
    `kl_cov_candidates`."""


def _clip_cov(
    covariance: Tensor,
    mask: Tensor,
    rows: Tensor,
    count: int,
    options: PolicyLossOptions,
    seed: int,
) -> Candidates:
    low, high = options.clip_cov_lb, options.clip_cov_ub
    return clip_cov_candidates(covariance, mask, rows, count, low=low, high=high, seed=seed)


def _kl_cov(
    covariance: Tensor,
    mask: Tensor,
    rows: Tensor,
    count: int,
    options: PolicyLossOptions,
    seed: int,
) -> Candidates:
    return kl_cov_candidates(covariance, mask, rows, count)


clip_cov_selection = Selection(lambda options: options.clip_cov_ratio, _clip_cov)
"""Random ones of those between clip_cov_lb and clip_cov_ub."""
kl_cov_selection = Selection(lambda options: options.kl_cov_ratio, _kl_cov)
"""Those of the greatest covariance."""


def select(parts: Sequence[Candidates], count: int, rows: Tensor, mask: Tensor) -> Tensor:
    """bool [B, R]: which tokens of these rows are among the `count` first of all parts' candidates.

    rows: int64 [B], global row ids; mask: bool [B, R].
    """
    selected = torch.zeros_like(mask)
    if not parts or not len(rows):
        return selected
    device = mask.device
    joined = Candidates(
        torch.cat([part.priority.to(device) for part in parts]),
        torch.cat([part.key.to(device) for part in parts]),
    )
    key = _best(joined, count).key
    place, order = rows.sort()
    row, column = key >> _COLUMN_BITS, key & ((1 << _COLUMN_BITS) - 1)
    found = torch.searchsorted(place, row).clamp(max=len(rows) - 1)
    own = place[found] == row
    selected[order[found[own]], column[own]] = True
    return selected


def _keys(index: Tensor, rows: Tensor, width: int) -> Tensor:
    """int64 [c]: the token's global row in the upper bits, its column in the lower 32."""
    width = max(width, 1)
    return (rows.to(torch.int64)[index // width] << _COLUMN_BITS) | (index % width)


def _best(candidates: Candidates, count: int) -> Candidates:
    """The first `count`, greatest priority first, then least key."""
    by_key = candidates.key.argsort()
    order = by_key[candidates.priority[by_key].argsort(descending=True, stable=True)][:count]
    return Candidates(candidates.priority[order], candidates.key[order])


def _uniform(keys: Tensor, seed: int) -> Tensor:
    """float64 in [0, 1): SplitMix64 (Steele et al. 2014) of each key, started from the seed."""
    x = keys + _signed(seed * 0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x = (x ^ _shifted(x, shift)) * _signed(factor)
    return _shifted(x ^ _shifted(x, 31), 11).double() * 2.0**-53


def _shifted(x: Tensor, bits: int) -> Tensor:
    """Logical shift to the right: torch's keeps the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _signed(x: int) -> int:
    x &= (1 << 64) - 1
    return x - (1 << 64) if x >= 1 << 63 else x

"""How much the trainer and the rollout engine disagree about the sampled tokens' log-probs.

A histogram with fixed edges adds up over ranks, so the 99th percentile is that of the whole step
without gathering its tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from megarl.errors import RunError

EDGES = torch.cat([torch.zeros(1), torch.logspace(-8, 2, 501, dtype=torch.float64)])
"""Nats; a bin is 4.7 % wide."""


class MismatchHistogram:
    """|log p_train - log p_rollout| over tokens."""

    def __init__(self) -> None:
        self._counts = torch.zeros(len(EDGES), dtype=torch.float64)
        self._sums = torch.zeros(2, dtype=torch.float64)  # tokens, |d|
        self._max = 0.0

    def add(self, difference: Tensor) -> None:
        """Take in log p_train - log p_rollout of some tokens, any shape."""
        d = difference.double().flatten()
        size = d.abs()
        bins = torch.bucketize(size, EDGES, right=True).sub_(1).clamp_(0, len(EDGES) - 1)
        self._counts += torch.bincount(bins, minlength=len(EDGES))
        self._sums += torch.stack([torch.tensor(float(d.numel())), size.sum()])
        largest = float(size.max()) if d.numel() else 0.0
        self._max = max(self._max, math.inf if math.isnan(largest) else largest)

    def reduced(
        self, total: Callable[[Tensor], Tensor], gather: Callable[[Any], list[Any]]
    ) -> MismatchHistogram:
        """The histogram of all ranks."""
        out = MismatchHistogram()
        both = total(torch.cat([self._counts, self._sums]))
        out._counts, out._sums = both[: len(EDGES)], both[len(EDGES) :]
        out._max = max(gather(self._max))
        return out

    @property
    def mean(self) -> float:
        """Mean absolute difference, nats."""
        return float(self._sums[1] / self._sums[0].clamp(min=1))

    @property
    def p99(self) -> float:
        """Upper edge of the bin that holds the 99th percentile, nats; at most the maximum.

        Infinite where any difference is, or is NaN.
        """
        if self._max == math.inf:
            return math.inf
        reached = self._counts.cumsum(0) >= 0.99 * self._counts.sum()
        upper = int(reached.int().argmax()) + 1
        return min(float(EDGES[min(upper, len(EDGES) - 1)]), self._max)

    def metrics(self) -> dict[str, float]:
        """Under the usual names."""
        name = "train_rollout_logprob_abs_diff"
        return {
            f"{name}/mean": self.mean,
            f"{name}/p99": self.p99,
            f"{name}/max": self._max,
        }


def check_mismatch(histogram: MismatchHistogram, mean_limit: float, p99_limit: float) -> None:
    """Raise RunError when a limit (nats, 0 is off) is passed; a NaN passes every limit."""
    for what, value, limit in (
        ("mean", histogram.mean, mean_limit),
        ("p99", histogram.p99, p99_limit),
    ):
        if limit > 0 and not value <= limit:
            raise RunError(
                f"train and rollout log-probs differ by {value:.4g} nats ({what}), over "
                f"observe.logprob_diff_{what}_limit {limit}: the engines compute different models; "
                "check dtype, temperature and attention settings of both"
            )

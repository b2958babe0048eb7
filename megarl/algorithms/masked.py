"""Sums and moments over the response tokens of a batch."""

from __future__ import annotations

import torch
from torch import Tensor


def masked_sum(x: Tensor, mask: Tensor, dim: int | None = None) -> Tensor:
    """Sum of x where mask is True, over `dim` or (None) everything; 0 where nothing is selected.

    x: float [B, R]; mask: bool [B, R].
    """
    kept = torch.where(mask, x, 0.0)
    return kept.sum() if dim is None else kept.sum(dim)


def moments(x: Tensor, mask: Tensor) -> Tensor:
    """float64 [3]: count, sum and sum of squares of x where mask is True.

    Moments of disjoint parts add up, so a caller sums them over micro-batches and ranks before
    `whiten`. fp64, because the variance is a difference of large sums.
    """
    kept = torch.where(mask, x, 0.0).double()
    return torch.stack([mask.sum().double(), kept.sum(), kept.square().sum()])


def whiten(x: Tensor, mask: Tensor, moments: Tensor, *, eps: float = 1e-8) -> Tensor:
    """(x - mean) / sqrt(variance + eps) inside the mask, 0 outside; shape and dtype of x.

    moments: float64 [3] from `moments`, summed over everything that is whitened together. The
    variance is unbiased (n - 1). With fewer than two tokens there is no spread to divide by, and x
    is only centred.
    """
    count, total, squares = moments.to(x.device).unbind()
    mean = total / count.clamp(min=1)
    variance = ((squares - total * mean) / (count - 1).clamp(min=1)).clamp(min=0)
    scale = torch.where(count > 1, (variance + eps).rsqrt(), torch.ones_like(variance))
    white = (x.double() - mean) * scale
    return torch.where(mask, white, 0.0).to(x.dtype)

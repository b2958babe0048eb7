"""Sums and moments over the response tokens of a batch."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

CHUNK = 1 << 18
"""Elements that are worked on at once: few enough that temporaries are small beside a batch."""


def row_chunks(x: Tensor) -> Iterator[slice]:
    """Slices of x's rows, together all of them, of about CHUNK elements each; x: [B, R]."""
    step = max(CHUNK // max(x.shape[1], 1), 1)
    for start in range(0, x.shape[0], step):
        yield slice(start, start + step)


def at_least_fp32(x: Tensor) -> Tensor:
    """x, in fp32 where it is fp16 or bf16: what is computed must not round or overflow there."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def token_counts(mask: Tensor) -> Tensor:
    """int64 [B]: how many are True in each row of mask, bool [B, R].

    In chunks: a sum of bools makes an int64 of each first.
    """
    counts = torch.zeros(mask.shape[0], dtype=torch.int64, device=mask.device)
    for rows in row_chunks(mask):
        counts[rows] = mask[rows].sum(-1)
    return counts


def masked_sum(x: Tensor, mask: Tensor, dim: int | None = None) -> Tensor:
    """Sum of x where mask is True, over `dim` or (None) everything; 0 where nothing is selected.

    x: float [B, R]; mask: bool [B, R].
    """
    kept = torch.where(mask, x, 0.0)
    return kept.sum() if dim is None else kept.sum(dim)


def moments(x: Tensor, mask: Tensor) -> Tensor:
    """float64 [3]: count, sum and sum of squares of x where mask is True.

    Moments of disjoint parts add up, so a caller sums them over micro-batches and ranks before
    `whiten`. fp64, because the variance is a difference of large sums. x: float [B, R].
    """
    total = torch.zeros(3, dtype=torch.float64, device=x.device)
    total[0] = torch.count_nonzero(mask)
    for rows in row_chunks(x):
        kept = torch.where(mask[rows], x[rows], 0.0).double()
        total[1] += kept.sum()
        total[2] += kept.square_().sum()
    return total


def whiten(x: Tensor, mask: Tensor, moments: Tensor, *, eps: float = 1e-8) -> Tensor:
    """(x - mean) / sqrt(variance + eps) inside the mask, 0 outside; shape and dtype of x.

    moments: float64 [3] from `moments`, summed over everything that is whitened together. The
    variance is unbiased (n - 1). With fewer than two tokens there is no spread to divide by, and x
    is only centred. x: float [B, R].
    """
    count, total, squares = moments.to(x.device).unbind()
    mean = total / count.clamp(min=1)
    variance = ((squares - total * mean) / (count - 1).clamp(min=1)).clamp(min=0)
    scale = torch.where(count > 1, (variance + eps).rsqrt(), torch.ones_like(variance))
    white = torch.empty_like(x)
    for rows in row_chunks(x):
        centred = x[rows].double() - mean
        white[rows] = torch.where(mask[rows], centred * scale, 0.0)
    return white

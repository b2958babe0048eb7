"""Random batches as they come: ragged, with holes, unequal groups, and NaN outside the mask."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

F64 = torch.float64


@dataclass(frozen=True)
class Batch:
    """Tensors of one batch, [B, R] and [B]; literal restatements read them by `inside`."""

    mask: Tensor
    rewards: Tensor
    values: Tensor
    steps: Tensor
    scores: Tensor
    baselines: Tensor
    group: Tensor
    logprobs: Tensor
    old_logprobs: Tensor
    ref_logprobs: Tensor
    advantages: Tensor

    def inside(self, x: Tensor) -> list[list]:
        """Per row: x at the tokens of the mask, in order, as Python numbers."""
        return [row[keep].tolist() for row, keep in zip(x, self.mask, strict=True)]

    def rows(self, index: Tensor | slice) -> Batch:
        """Some rows, as a batch."""
        return Batch(**{name: value[index] for name, value in vars(self).items()})

    def wider(self, by: int) -> Batch:
        """The same batch with more padding, NaN and False."""
        return Batch(**{name: _padded(value, by) for name, value in vars(self).items()})


def ragged(seed: int = 0, rows: int = 11, width: int = 9, *, holes: bool = True) -> Batch:
    """A batch in fp64, with a response of no token, one of one, and one of all."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=F64, generator=generator)

    lengths = torch.randint(0, width + 1, (rows,), generator=generator)
    for i, length in enumerate((0, 1, width)[:rows]):
        lengths[i] = length
    mask = torch.arange(width)[None, :] < lengths[:, None]
    if holes:
        mask &= torch.rand(mask.shape, generator=generator) < 0.7
    old = -3 * torch.rand(rows, width, dtype=F64, generator=generator)
    per_token = {
        "rewards": normal(rows, width),
        "values": normal(rows, width),
        "logprobs": old + 0.5 * normal(rows, width),
        "old_logprobs": old,
        "ref_logprobs": old + 0.3 * normal(rows, width),
        "advantages": normal(rows, width),
    }
    for value in per_token.values():
        value[~mask] = float("nan")
    # Scores on a grid, so that groups have ties, and some are all equal.
    scores = torch.randint(0, 3, (rows,), generator=generator).double() / 2
    return Batch(
        mask=mask,
        steps=torch.rand(mask.shape, generator=generator) < 0.5,
        scores=scores,
        baselines=normal(rows),
        group=torch.tensor([-3, 12, 5, 7])[torch.randint(0, 4, (rows,), generator=generator)],
        **per_token,
    )


def _padded(value: Tensor, by: int) -> Tensor:
    if value.dim() < 2:
        return value
    fill = value.new_full((value.shape[0], by), torch.nan if value.is_floating_point() else 0)
    return torch.cat([value, fill], 1)


def spread_over(values: list[list[float]], mask: Tensor) -> Tensor:
    """float64 [B, R]: per row a list of numbers, at the tokens of the mask; 0 outside."""
    out = torch.zeros(mask.shape, dtype=F64)
    flat = [x for row in values for x in row]
    out[mask] = torch.tensor(flat, dtype=F64)
    return out

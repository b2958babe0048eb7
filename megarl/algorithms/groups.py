"""Statistics over groups of samples: rows that answer the same prompt."""

from __future__ import annotations

import torch
from torch import Tensor


class Groups:
    """The groups of a batch, of any sizes and in any order.

    group: int [B]; rows with the same number belong together. What the methods take and give has
    one number per row, [B]; floats are worked on in fp64.
    """

    def __init__(self, group: Tensor) -> None:
        self.numbers, self.member = torch.unique(group, return_inverse=True)
        self.size = self.sum(torch.ones_like(group))
        """float64 [B]: samples in the row's group."""

    def sum(self, x: Tensor) -> Tensor:
        """float64 [B]: the sum of x over the row's group."""
        total = torch.zeros(len(self.numbers), dtype=torch.float64, device=x.device)
        return total.index_add_(0, self.member, x.double())[self.member]

    def mean(self, x: Tensor) -> Tensor:
        """float64 [B]: the mean of x over the row's group."""
        return self.sum(x) / self.size

    def least(self, x: Tensor) -> Tensor:
        """[B]: the smallest x of the row's group."""
        return self._extreme(x, "amin")

    def greatest(self, x: Tensor) -> Tensor:
        """[B]: the greatest x of the row's group."""
        return self._extreme(x, "amax")

    def differ(self, x: Tensor) -> Tensor:
        """bool [B]: whether the row's group has two samples whose x is not the same."""
        return self.least(x) != self.greatest(x)

    def deviations(self, x: Tensor) -> Tensor:
        """float64 [B]: x minus its group's mean; exactly 0 where all of the group are equal."""
        return torch.where(self.differ(x), x.double() - self.mean(x), 0.0)

    def ranks(self, x: Tensor) -> Tensor:
        """int64 [B]: how many of the row's group come before it, smallest x first.

        Of equal ones the earlier row comes first.
        """
        order = x.argsort(stable=True)
        order = order[self.member[order].argsort(stable=True)]
        place = torch.empty_like(order)
        place[order] = torch.arange(len(order), device=x.device)
        counts = torch.bincount(self.member, minlength=len(self.numbers))
        return place - (counts.cumsum(0) - counts)[self.member]

    def _extreme(self, x: Tensor, which: str) -> Tensor:
        found = torch.zeros(len(self.numbers), dtype=x.dtype, device=x.device)
        found.scatter_reduce_(0, self.member, x, which, include_self=False)
        return found[self.member]

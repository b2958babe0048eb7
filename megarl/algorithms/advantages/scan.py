"""Sums over the tokens to come, without a loop over tokens."""

from __future__ import annotations

import torch
from torch import Tensor


def discounted_sums(x: Tensor, decay: float) -> Tensor:
    """[B, R]: y_t = sum over k >= 0 of decay^k x_{t+k}, in log2(R) passes; x: float [B, R].

    Hillis and Steele 1986: the sums of windows of 1, 2, 4, ... tokens, each from the one before, as
    y_t + decay^s y_{t+s} is twice as wide as y, whose width is s. x is overwritten.
    """
    width, out = 1, torch.empty_like(x)
    while width < x.shape[1] and decay**width > 0:
        torch.add(x[:, :-width], x[:, width:], alpha=decay**width, out=out[:, :-width])
        out[:, -width:] = x[:, -width:]
        x, out, width = out, x, 2 * width
    return x


def has_holes(mask: Tensor) -> bool:
    """Whether any row of a bool [B, R] mask has a False before a True."""
    return bool((mask[:, 1:] & ~mask[:, :-1]).any())


class Compaction:
    """Moves the tokens of a mask with holes together, and back.

    mask: bool [B, R]. Moved tokens stand in order in columns 1, 2, ... of [B, 1 + R], with 0 behind
    them. Column 0 is where everything outside the mask goes to, and comes from: its numbers mean
    nothing.
    """

    def __init__(self, mask: Tensor) -> None:
        self._index = mask.cumsum(-1).mul_(mask)

    def close(self, x: Tensor) -> Tensor:
        """float [B, 1 + R], from x, float [B, R], of which only what is inside the mask counts."""
        moved = x.new_zeros(x.shape[0], 1 + x.shape[1])
        return moved.scatter_(1, self._index, x)

    def open(self, moved: Tensor) -> Tensor:
        """The inverse of `close`: float [B, R], 0 outside the mask. Column 0 becomes 0."""
        moved[:, 0] = 0
        return moved.gather(1, self._index)

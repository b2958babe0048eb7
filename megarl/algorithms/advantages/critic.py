"""Generalized advantage estimation: the one estimator that reads a critic."""

from __future__ import annotations

import torch
from torch import Tensor

from megarl.algorithms.advantages.base import AdvantageInputs, Advantages, register
from megarl.algorithms.advantages.scan import Compaction, discounted_sums, has_holes
from megarl.algorithms.masked import at_least_fp32, row_chunks


@torch.no_grad()
def gae(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float) -> Advantages:
    """Schulman et al. 2016 (arXiv:1506.02438), eq. 16; advantages are not whitened.

    delta_t = r_t + gamma * V_{t+1} - V_t, A_t = delta_t + gamma * lam * A_{t+1}, returns = A + V;
    beyond the last token V = A = 0. rewards, values: float [B, R]; mask: bool [B, R], whose holes
    are stepped over: t+1 is the next token inside the mask.
    """
    advantages, returns = torch.empty_like(values), torch.empty_like(values)
    for rows in row_chunks(values):
        inside = mask[rows]
        r = at_least_fp32(torch.where(inside, rewards[rows], 0.0))
        v = at_least_fp32(torch.where(inside, values[rows], 0.0))
        holes = Compaction(inside) if has_holes(inside) else None
        if holes is None:
            a = _dense(r, v, gamma, lam)
        else:
            a = holes.open(_dense(holes.close(r), holes.close(v), gamma, lam))
        advantages[rows] = a
        returns[rows] = v.add_(a)
    return advantages, returns


def _dense(rewards: Tensor, values: Tensor, gamma: float, lam: float) -> Tensor:
    """Advantages of right-padded rows that are 0 in the padding: what follows from 0 is 0."""
    delta = rewards - values
    delta[:, :-1].add_(values[:, 1:], alpha=gamma)
    return discounted_sums(delta, gamma * lam)


@register("gae", needs_values=True)
def _gae(inputs: AdvantageInputs) -> Advantages:
    assert inputs.values is not None
    return gae(inputs.rewards, inputs.values, inputs.mask, inputs.gamma, inputs.lam)

"""Advantage estimators: plain functions, and a registry that calls them by name.

`gae` is Schulman et al. 2016 (arXiv:1506.02438), eq. 16; `grpo` is Shao et al. 2024
(arXiv:2402.03300), sec. 4.1.2; `grpo_no_std` is Dr. GRPO, Liu et al. 2025 (arXiv:2503.20783);
`rloo` is Ahmadian et al. 2024 (arXiv:2402.14740), eq. 8.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from megarl.algorithms.masked import masked_sum
from megarl.errors import ConfigError


@dataclass(frozen=True, slots=True)
class AdvantageInputs:
    """All that an estimator may read. A group of samples is never split over calls."""

    mask: Tensor
    """bool [B, R], True on response tokens."""
    rewards: Tensor
    """float [B, R], from `token_level_rewards`."""
    scores: Tensor
    """float [B], from `sequence_rewards`."""
    group: Tensor
    """int [B]: rows with the same number answer the same prompt."""
    values: Tensor | None = None
    """float [B, R], the critic's; only for estimators with `needs_values`."""
    gamma: float = 1.0
    """Discount per token."""
    lam: float = 1.0
    """GAE's lambda."""


Advantages = tuple[Tensor, Tensor]
"""(advantages, returns), float [B, R] each, 0 outside the mask."""


@dataclass(frozen=True, slots=True)
class Estimator:
    """A registered estimator."""

    name: str
    compute: Callable[[AdvantageInputs], Advantages]
    needs_values: bool
    """It reads the critic's values: without a critic it cannot be used."""


_ESTIMATORS: dict[str, Estimator] = {}

Compute = Callable[[AdvantageInputs], Advantages]


def register(name: str, *, needs_values: bool = False) -> Callable[[Compute], Compute]:
    """Decorator: makes a function of `AdvantageInputs` known as `name`; ConfigError if taken."""

    def add(compute: Compute) -> Compute:
        if name in _ESTIMATORS:
            raise ConfigError(f"adv_estimator {name!r} is registered already: choose another name")
        _ESTIMATORS[name] = Estimator(name, compute, needs_values)
        return compute

    return add


def estimator(name: str) -> Estimator:
    """The estimator registered as `name`; ConfigError that lists the known ones."""
    if name not in _ESTIMATORS:
        close = difflib.get_close_matches(name, _ESTIMATORS, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        known = ", ".join(sorted(_ESTIMATORS))
        raise ConfigError(f"algorithm.adv_estimator {name!r} is unknown: one of {known}{hint}")
    return _ESTIMATORS[name]


def compute_advantages(name: str, inputs: AdvantageInputs) -> Advantages:
    """Advantages and returns, float [B, R] each, by the estimator called `name`.

    ConfigError for an unknown name, and for an estimator that needs values when there are none.
    """
    chosen = estimator(name)
    if chosen.needs_values and inputs.values is None:
        raise ConfigError(
            f"algorithm.adv_estimator {name!r} needs the values of a critic: configure a critic, "
            "or take an estimator without one (grpo, grpo_no_std, rloo)"
        )
    return chosen.compute(inputs)


def token_level_rewards(score: Tensor, kl: Tensor | None, mask: Tensor, kl_coef: float) -> Tensor:
    """float [B, R]: -kl_coef * kl on every token, plus the score on the last response token.

    score: float [B]; kl: float [B, R] or None (no penalty); mask: bool [B, R]. An empty response
    has no token to carry its score: its row is 0.
    """
    rewards = torch.zeros_like(mask, dtype=score.dtype)
    if kl is not None:
        rewards = rewards - kl_coef * torch.where(mask, kl, 0.0)
    # The last True of each row; masks may have holes (tool output), so it is not the length.
    is_last = mask & (mask.flip(-1).cumsum(-1).flip(-1) == 1)
    return rewards + torch.where(is_last, score[:, None], 0.0)


def sequence_rewards(score: Tensor, kl: Tensor | None, mask: Tensor, kl_coef: float) -> Tensor:
    """float [B]: score - kl_coef * sum of kl; unlike the token rewards it keeps empty responses."""
    return score if kl is None else score - kl_coef * masked_sum(kl, mask, -1)


@torch.no_grad()
def gae(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float) -> Advantages:
    """Generalized advantage estimation; advantages are not whitened.

    delta_t = r_t + gamma * V_{t+1} - V_t, A_t = delta_t + gamma * lam * A_{t+1}, returns = A + V;
    beyond the last token V = A = 0. rewards, values: float [B, R]; mask: bool [B, R], whose holes
    are stepped over: t+1 is the next token inside the mask.
    """
    advantages = torch.zeros_like(values)
    carry = values.new_zeros(values.shape[0])
    next_value = torch.zeros_like(carry)
    for t in reversed(range(values.shape[1])):
        inside = mask[:, t]
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        carry = torch.where(inside, delta + gamma * lam * carry, carry)
        next_value = torch.where(inside, values[:, t], next_value)
        advantages[:, t] = torch.where(inside, carry, 0.0)
    return advantages, torch.where(mask, advantages + values, 0.0)


def _deviations(scores: Tensor, group: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Per row, fp64 [B]: score minus the mean of its group, size and unbiased std of the group."""
    scores = scores.double()
    _, member = torch.unique(group, return_inverse=True)
    num_groups = int(member.max()) + 1 if member.numel() else 0

    def per_group(x: Tensor) -> Tensor:
        return torch.zeros(num_groups, dtype=x.dtype, device=x.device).index_add(0, member, x)

    size = per_group(torch.ones_like(scores))
    deviation = scores - (per_group(scores) / size)[member]
    std = (per_group(deviation.square()) / (size - 1).clamp(min=1)).sqrt()
    return deviation, size[member], std[member]


def _spread(per_row: Tensor, mask: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.where(mask, per_row[:, None], 0.0).to(dtype)


@torch.no_grad()
def grpo(
    scores: Tensor, group: Tensor, mask: Tensor, norm_by_std: bool = True, eps: float = 1e-6
) -> Tensor:
    """float [B, R]: (score - group mean) / (unbiased group std + eps) on every response token.

    scores: float [B]; group: int [B]; mask: bool [B, R]. A sample alone in its group has nothing
    to be compared with: its advantage is 0. `norm_by_std=False` leaves the division out.
    """
    deviation, _, std = _deviations(scores, group)
    advantage = deviation / (std + eps) if norm_by_std else deviation
    return _spread(advantage, mask, scores.dtype)


@torch.no_grad()
def rloo(scores: Tensor, group: Tensor, mask: Tensor) -> Tensor:
    """float [B, R]: score minus the mean score of the group's other samples.

    Shapes as in `grpo`; a sample alone in its group gets 0.
    """
    deviation, size, _ = _deviations(scores, group)
    # s - (n m - s) / (n - 1) = (s - m) n / (n - 1)
    return _spread(deviation * size / (size - 1).clamp(min=1), mask, scores.dtype)


@register("gae", needs_values=True)
def _gae(inputs: AdvantageInputs) -> Advantages:
    assert inputs.values is not None
    return gae(inputs.rewards, inputs.values, inputs.mask, inputs.gamma, inputs.lam)


def _outcome(advantages: Tensor) -> Advantages:
    """Without a critic the returns are the advantages: nothing is fitted to them."""
    return advantages, advantages


@register("grpo")
def _grpo(inputs: AdvantageInputs) -> Advantages:
    return _outcome(grpo(inputs.scores, inputs.group, inputs.mask))


@register("grpo_no_std")
def _grpo_no_std(inputs: AdvantageInputs) -> Advantages:
    return _outcome(grpo(inputs.scores, inputs.group, inputs.mask, norm_by_std=False))


@register("rloo")
def _rloo(inputs: AdvantageInputs) -> Advantages:
    return _outcome(rloo(inputs.scores, inputs.group, inputs.mask))

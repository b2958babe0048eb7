"""What an estimator reads, gives and needs, and the registry that calls it by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from megarl.algorithms.registry import Registry
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
    baselines: Tensor | None = None
    """float [B]: the score of the prompt's greedy answer; only for those with `needs_greedy`."""
    steps: Tensor | None = None
    """bool [B, R]: the tokens that a process reward was given for, the last of each step; None:
    the last token alone. Only grpo_process reads it."""


Advantages = tuple[Tensor, Tensor]
"""(advantages, returns), float [B, R] each, 0 outside the mask."""

Compute = Callable[[AdvantageInputs], Advantages]


@dataclass(frozen=True, slots=True)
class Normalization:
    """A second phase, for what takes the whole step: sums that are added up, then applied.

    Each rank takes `sums` of its rows (a rank without rows: zeros), the ranks' are added, and each
    applies the total to its advantages. The returns stay as they are.
    """

    num_sums: int
    sums: Callable[[AdvantageInputs, Tensor], Tensor]
    """(inputs, advantages) -> float64 [num_sums]."""
    apply: Callable[[Tensor, Tensor, Tensor], Tensor]
    """(advantages, mask, total of the sums) -> advantages, float [B, R]."""


@dataclass(frozen=True, slots=True)
class Estimator:
    """A registered estimator."""

    name: str
    compute: Compute
    needs_values: bool = False
    """It reads the critic's values: without a critic it cannot be used."""
    needs_groups: bool = False
    """It compares samples of a prompt: with one of each, every advantage is 0."""
    needs_greedy: bool = False
    """It reads `baselines`: each prompt needs a greedy answer beside its samples."""
    normalization: Normalization | None = None
    """What follows `compute`; None: its advantages are final."""


_ESTIMATORS: Registry[Estimator] = Registry(
    "algorithm.adv_estimator", "megarl.adv_estimators", Estimator, ("inputs",)
)


def register(
    name: str,
    *,
    needs_values: bool = False,
    needs_groups: bool = False,
    needs_greedy: bool = False,
    normalization: Normalization | None = None,
) -> Callable[[Compute], Compute]:
    """Decorator: makes a function of `AdvantageInputs` known as `name`; ConfigError if taken."""

    def add(compute: Compute) -> Compute:
        _ESTIMATORS.add(
            Estimator(name, compute, needs_values, needs_groups, needs_greedy, normalization)
        )
        return compute

    return add


def estimator(name: str) -> Estimator:
    """The estimator of a name, path/to/file.py:function or entry point; ConfigError if unknown."""
    return _ESTIMATORS.get(name)


def estimator_names() -> tuple[str, ...]:
    """The registered names, in order."""
    return _ESTIMATORS.names()


def compute_advantages(name: str, inputs: AdvantageInputs) -> Advantages:
    """Advantages and returns, float [B, R] each, by the estimator called `name`.

    Without its normalization, which takes sums over the step. ConfigError for an unknown name, and
    for an estimator that lacks what it needs.
    """
    chosen = estimator(name)
    if chosen.needs_values and inputs.values is None:
        raise ConfigError(
            f"algorithm.adv_estimator {name!r} needs the values of a critic: configure a critic, "
            "or take an estimator without one (grpo, grpo_no_std, rloo)"
        )
    if chosen.needs_greedy and inputs.baselines is None:
        raise ConfigError(
            f"algorithm.adv_estimator {name!r} compares with the score of a greedy answer, and "
            "none was given: sample one per prompt, or take another estimator (rloo, grpo)"
        )
    return _checked(name, chosen.compute(inputs), inputs.mask)


def _checked(name: str, found: Any, mask: Tensor) -> Advantages:
    """What an estimator returned; ConfigError for what is not advantages and returns."""
    shapes = [tuple(getattr(one, "shape", ())) for one in found] if _is_pair(found) else []
    if shapes != [tuple(mask.shape)] * 2:
        what = f"tensors {shapes}" if shapes else f"a {type(found).__name__}"
        raise ConfigError(
            f"algorithm.adv_estimator {name} must return (advantages, returns), two float tensors "
            f"of the mask's shape {tuple(mask.shape)}: it returned {what}"
        )
    return cast(Advantages, tuple(found))


def _is_pair(found: Any) -> bool:
    return isinstance(found, (tuple, list)) and len(found) == 2


def step_advantages(name: str, inputs: AdvantageInputs) -> Advantages:
    """As `compute_advantages`, normalized: for callers that hold the whole step."""
    advantages, returns = compute_advantages(name, inputs)
    normalization = estimator(name).normalization
    if normalization is not None:
        sums = normalization.sums(inputs, advantages)
        advantages = normalization.apply(advantages, inputs.mask, sums)
    return advantages, returns


def outcome(advantages: Tensor) -> Advantages:
    """Without a critic the returns are the advantages: nothing is fitted to them."""
    return advantages, advantages


def spread(per_row: Tensor, mask: Tensor, dtype: torch.dtype) -> Tensor:
    """[B, R] of `dtype`: per_row [B] on every token of the mask, 0 outside."""
    return torch.where(mask, per_row.to(dtype)[:, None], 0.0)

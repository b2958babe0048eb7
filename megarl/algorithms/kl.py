"""KL divergence of the policy from its reference: estimators per token, coefficient over time."""

from __future__ import annotations

import math
from typing import Protocol

from torch import Tensor

from megarl.algorithms.logprobs import log_ratio, safe_exp
from megarl.errors import ConfigError, RunError

_ALIASES = {"kl": "k1", "mse": "k2", "low_var_kl": "k3"}
_PLAIN = ("k1", "k2", "k3", "abs", *_ALIASES)

KL_KINDS = (*_PLAIN, *(f"{name}+" for name in _PLAIN))
"""What `kl_estimate` knows, aliases included."""


def kl_estimate(logprobs: Tensor, ref_logprobs: Tensor, mask: Tensor, kind: str) -> Tensor:
    """Estimate of KL(policy || reference) per token, float [B, R], 0 outside the mask.

    Of tokens drawn from the policy: with d = ref_logprobs - logprobs, k1 = -d (unbiased, noisy),
    k2 = d^2 / 2 (biased), k3 = exp(d) - 1 - d (unbiased, never negative), abs = |d|. Source: John
    Schulman, "Approximating KL Divergence" (2020). Aliases: kl = k1, mse = k2, low_var_kl = k3.
    With a + (k3+) the value is the kind's and the gradient k2's, the only one of them that is the
    KL's own in expectation: Tang and Munos 2025 (arXiv:2506.09477).
    logprobs, ref_logprobs: float [B, R]; mask: bool [B, R]. ConfigError for an unknown kind.
    """
    if kind not in KL_KINDS:
        raise ConfigError(
            f"algorithm.kl_loss_type {kind!r} is unknown: one of {', '.join(_PLAIN)}, each also "
            "with a + (its value, and the gradient of k2)"
        )
    difference = log_ratio(ref_logprobs, logprobs, mask)
    name = kind.removesuffix("+")
    value = _kl_of(difference, _ALIASES.get(name, name))
    if name == kind:
        return value
    half_square = 0.5 * difference.square()
    return value.detach() + half_square - half_square.detach()


def _kl_of(difference: Tensor, kind: str) -> Tensor:
    match kind:
        case "k1":
            return -difference
        case "k2":
            return 0.5 * difference.square()
        case "k3":
            return safe_exp(difference) - 1 - difference
    return difference.abs()


class KLController(Protocol):
    """Holds the coefficient of the KL penalty. Lifecycle: read `value`, then `update`, each step.

    `update` must get the same numbers on every rank, or the coefficients drift apart.
    """

    @property
    def value(self) -> float:
        """The coefficient of this step."""

    def update(self, kl: float, num_samples: int) -> None:
        """Takes in the measured KL (nats per response token) of a step's num_samples samples."""

    def state_dict(self) -> dict[str, float]:
        """What a checkpoint keeps."""

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Continues from `state_dict`."""


class FixedKL:
    """A coefficient that stays."""

    def __init__(self, kl_coef: float) -> None:
        if not kl_coef >= 0:
            raise ConfigError(f"algorithm.kl_coef is {kl_coef}: give 0 (off) or a positive number")
        self.value = kl_coef

    def update(self, kl: float, num_samples: int) -> None:
        """Changes nothing."""

    def state_dict(self) -> dict[str, float]:
        """Nothing: the coefficient is the configured one, also after a resume with another."""
        return {}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Changes nothing."""


class AdaptiveKL:
    """Steers the coefficient so that the KL comes near a target.

    Ziegler et al. 2019 (arXiv:1909.08593), sec. 2.2: e = clip((KL - target) / target, -0.2, 0.2);
    coefficient *= 1 + e * num_samples / horizon. kl_coef: where it starts; target_kl: nats;
    horizon: samples. ConfigError for numbers that are not positive.
    """

    def __init__(self, kl_coef: float, target_kl: float, horizon: int) -> None:
        given = {"kl_coef": kl_coef, "kl_ctrl.target_kl": target_kl, "kl_ctrl.horizon": horizon}
        for key, number in given.items():
            if not number > 0:
                raise ConfigError(
                    f"algorithm.{key} is {number}: adaptive KL control multiplies and divides by "
                    "it, so it must be positive (or take kl_ctrl.type=fixed)"
                )
        self.value = kl_coef
        self._target_kl = target_kl
        self._horizon = horizon

    def update(self, kl: float, num_samples: int) -> None:
        """One step of the controller; RunError for a KL that is not finite."""
        if not math.isfinite(kl):
            raise RunError(
                f"the measured KL is {kl}: adaptive KL control cannot follow it (the policy or the "
                "reference gave a log-probability that is not finite)"
            )
        error = min(max(kl / self._target_kl - 1, -0.2), 0.2)
        # A batch of 5 horizons or more would otherwise end the penalty, or turn its sign.
        self.value *= max(1 + error * num_samples / self._horizon, 0.1)

    def state_dict(self) -> dict[str, float]:
        """The coefficient."""
        return {"value": self.value}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Continues from the coefficient of `state_dict`."""
        self.value = state["value"]


def kl_controller(
    kind: str, *, kl_coef: float, target_kl: float = 0.1, horizon: int = 10_000
) -> KLController:
    """The controller of `kl_ctrl.type` ("fixed" or "adaptive"); ConfigError for another."""
    if kind == "fixed":
        return FixedKL(kl_coef)
    if kind == "adaptive":
        return AdaptiveKL(kl_coef, target_kl, horizon)
    raise ConfigError(f"algorithm.kl_ctrl.type {kind!r} is unknown: one of fixed, adaptive")

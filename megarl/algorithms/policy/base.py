"""What a policy loss gives and needs, and the registry that calls it by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from megarl.algorithms.entropy import sampled_entropy
from megarl.algorithms.logprobs import safe_exp
from megarl.algorithms.masked import masked_sum
from megarl.algorithms.policy.covariance import Selection
from megarl.algorithms.policy.inputs import PolicyLossInputs, PolicyLossOptions
from megarl.algorithms.registry import Registry
from megarl.algorithms.stats import PolicyStats
from megarl.errors import ConfigError

Compute = Callable[[PolicyLossInputs, PolicyLossOptions], tuple[Tensor, PolicyStats]]
"""(this part's share of the global loss, a scalar; sums for metrics)."""

SequenceTerm = Callable[[PolicyLossInputs, PolicyLossOptions], Tensor]
"""float [B, R], 0 outside the mask: what a loss averages over each response."""


@dataclass(frozen=True, slots=True)
class PolicyLoss:
    """A registered policy loss."""

    name: str
    compute: Compute
    selection: Selection | None = None
    """How the tokens are picked that it treats apart; None: it reads no `selected`."""
    sequence_term: SequenceTerm | None = None
    """What it averages over a response; None: it looks at each token alone."""

    @property
    def needs_selection(self) -> bool:
        """It reads `selected`."""
        return self.selection is not None

    @property
    def needs_sequences(self) -> bool:
        """It reads whole rows, or `sequence_sums` beside parts of rows."""
        return self.sequence_term is not None


_LOSSES: Registry[PolicyLoss] = Registry(
    "algorithm.policy_loss", "megarl.policy_losses", PolicyLoss, ("inputs", "options")
)


def register(
    name: str, *, selection: Selection | None = None, sequence_term: SequenceTerm | None = None
) -> Callable[[Compute], Compute]:
    """Decorator: makes a function known as the policy loss `name`; ConfigError if taken."""

    def add(compute: Compute) -> Compute:
        _LOSSES.add(PolicyLoss(name, compute, selection, sequence_term))
        return compute

    return add


def policy_loss(name: str) -> PolicyLoss:
    """The loss of a name, path/to/file.py:function or entry point; ConfigError if unknown."""
    return _LOSSES.get(name)


def policy_loss_names() -> tuple[str, ...]:
    """The registered names, in order."""
    return _LOSSES.names()


def compute_policy_loss(
    name: str, inputs: PolicyLossInputs, options: PolicyLossOptions
) -> tuple[Tensor, PolicyStats]:
    """The loss called `name`: this part's share of the global loss (scalar), and its sums.

    ConfigError for an unknown name, and for a loss that lacks its selection.
    """
    chosen = policy_loss(name)
    if chosen.needs_selection and inputs.selected is None:
        raise ConfigError(
            f"algorithm.policy_loss {name!r} treats tokens apart that covariance.select picks from "
            "the whole mini-batch, and none were given"
        )
    found = chosen.compute(inputs, options)
    if not (isinstance(found, tuple) and len(found) == 2 and isinstance(found[1], PolicyStats)):
        raise ConfigError(
            f"algorithm.policy_loss {name} must return (loss, stats), a scalar tensor and what "
            f"policy_stats gives: it returned a {type(found).__name__}"
        )
    if found[0].dim():
        raise ConfigError(
            f"algorithm.policy_loss {name} must return a scalar loss, of weighted_sum: its loss "
            f"has the shape {tuple(found[0].shape)}"
        )
    return found


def sequence_sums(loss: PolicyLoss, inputs: PolicyLossInputs, options: PolicyLossOptions) -> Tensor:
    """float64 [B, 2]: sum of what `loss` averages over a response, and its tokens, of these parts.

    Where a row is spread over ranks (context parallelism), they are added up and come in again as
    `PolicyLossInputs.sequence_sums`. Without gradient: the loss passes it on token by token.
    """
    assert loss.sequence_term is not None, f"{loss.name} looks at each token alone"
    with torch.no_grad():
        term = loss.sequence_term(inputs, options)
        return torch.stack([term.double().sum(-1), inputs.mask.sum(-1).double()], -1)


@torch.no_grad()
def policy_stats(
    inputs: PolicyLossInputs,
    log_ratio: Tensor,
    *,
    clipped: Tensor | None = None,
    dual_clipped: Tensor | None = None,
    selected: Tensor | None = None,
) -> PolicyStats:
    """The sums that every loss reports.

    log_ratio: of `PolicyLossInputs.log_ratio`; the others: bool [B, R], or None for none.
    """
    ratio, mask = safe_exp(log_ratio), inputs.mask
    entropy = inputs.entropy
    if entropy is None:
        entropy = sampled_entropy(inputs.logprobs, mask)

    def total(x: Tensor | None) -> Tensor:
        x = torch.zeros_like(mask) if x is None else x
        return masked_sum(x.double(), mask)

    return PolicyStats(
        tokens=total(mask),
        clipped=total(clipped),
        dual_clipped=total(dual_clipped),
        ratio=total(ratio),
        kl=total(-log_ratio),
        kl_k3=total(ratio - 1 - log_ratio),
        entropy=total(entropy),
        selected=total(selected),
    )

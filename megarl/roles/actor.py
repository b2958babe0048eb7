"""The actor: log-probs of the sampled tokens, and the clipped policy update."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from megarl.algorithms.entropy import entropy_loss
from megarl.algorithms.kl import kl_estimate
from megarl.algorithms.losses import token_weights, weighted_sum
from megarl.algorithms.policy import (
    PolicyLossInputs,
    PolicyLossOptions,
    compute_policy_loss,
    policy_loss,
)
from megarl.algorithms.stats import PolicyStats
from megarl.models.micro_batch import LossInputs, MicroBatch, build_micro_batch
from megarl.models.optimizer import StepResult
from megarl.models.schedule import Loss
from megarl.roles.megatron_role import MegatronRole, RoleBatch

LOSSES = ("pg_loss", "kl_loss", "loss")
"""What an update reports: the policy's own, the KL before its weight, and the sum of all terms."""


@dataclass(frozen=True, slots=True)
class PolicyLossSettings:
    """What the policy loss is made of (see config.schema.AlgorithmConfig)."""

    policy_loss: str
    options: PolicyLossOptions
    entropy_coef: float
    kl_loss_coef: float
    """0 where the KL is not part of the loss."""
    kl_loss_type: str
    loss_agg_mode: str
    norm_length: int
    ppo_epochs: int
    temperature: float

    @property
    def selects(self) -> bool:
        """Whether the loss treats picked tokens apart."""
        return policy_loss(self.policy_loss).needs_selection


@dataclass(frozen=True, slots=True)
class PolicyInputs:
    """Response tensors of an update, fp32 [n, R], on all ranks of the slice."""

    old_logprobs: Tensor | None
    """None: the update is the first and only one, so its own log-probs are the old ones."""
    ref_logprobs: Tensor | None
    advantages: Tensor
    importance: Tensor | None = None
    """What each token's share of the policy loss is multiplied by; None: 1."""
    kept: Tensor | None = None
    """bool [n, R]: tokens that count, in all terms of the loss; None: all of the responses."""
    token_counts: tuple[int, ...] | None = None
    """How many of each row of the step count; None with `kept`."""
    selected: Tensor | None = None
    """bool [n, R], for policy losses that read it."""


@dataclass
class UpdateResult:
    """What an update reports on owners; sums are over this owner's tokens."""

    stats: Tensor
    """float64 sums of PolicyStats or ValueStats."""
    losses: dict[str, float]
    """By the name of its metric: mean of this owner's share over the optimizer steps; shares add up
    over owners."""
    steps: list[StepResult]
    logprobs: Tensor | None = None
    """fp32 [n, R] seen by the first epoch, where PolicyInputs had no old ones."""


def logprob_reporter(output: Any, batch: MicroBatch) -> tuple[Tensor, dict[str, Tensor]]:
    """A loss that only reports the log-probs of a policy model."""
    logprobs, _ = output
    return logprobs.sum(), {"logprobs": logprobs.detach()}


def sequence_logprobs(role: MegatronRole, token_ids: Sequence[int]) -> list[float] | None:
    """Log-prob of each token of a text after its first, temperature 1; None except on owners.

    All ranks of the role's pool call it together; every slice computes the same.
    """
    if not role.here:
        return None
    count = len(token_ids) - 1
    micro = build_micro_batch(
        torch.tensor([list(token_ids)]),
        torch.tensor([1]),
        torch.tensor([count]),
        [0],
        count,
        None,
        role.pad_to_multiple,
    )
    copies = role.layout.pp if role.layout.vpp > 1 else 1
    reports = role.engine.forward([micro] * copies, logprob_reporter)
    if not role.is_owner:
        return None
    values: list[float] = reports[0]["logprobs"].cpu().tolist()
    return values


class PolicyRole(MegatronRole):
    """A role that holds a policy: the actor, and the reference."""

    def logprobs(self, batch: RoleBatch | None, temperature: float) -> Tensor | None:
        """fp32 [n, R] on owners: natural log-probs after temperature."""
        return self.score(batch, logprob_reporter, "logprobs", temperature=temperature)


class Actor(PolicyRole):
    """The policy that is trained."""

    weight_version = 1
    """One more than the updates so far: what rollouts must be made with; equal on all ranks."""

    def update(
        self, batch: RoleBatch | None, inputs: PolicyInputs, settings: PolicyLossSettings, seed: int
    ) -> UpdateResult | None:
        """`ppo_epochs` passes over the step's mini-batches; None on ranks without the actor."""
        self.weight_version += 1
        if batch is None:
            return None
        stats, losses, steps = PolicyStats.zero().to_vector(), Counter[str](), []
        seen = torch.zeros(len(batch.index) * batch.width)
        for epoch in range(settings.ppo_epochs):
            order = list(batch.dealt.rows.mini_batches)
            random.Random(seed + epoch).shuffle(order)
            for rows in order:
                flat = _loss_inputs(batch, rows, inputs, settings)
                reports, step = self.train_on(
                    batch,
                    rows,
                    flat,
                    _policy_loss(settings, batch.width),
                    temperature=settings.temperature,
                    with_entropy=settings.entropy_coef > 0,
                )
                steps.append(step)
                for micro, report in reports if self.is_owner else []:
                    stats += report["stats"]
                    losses.update({name: float(report[name]) for name in LOSSES if name in report})
                    if epoch == 0:
                        seen[micro.slot] = report["logprobs"].cpu()
        logprobs = seen.view(len(batch.index), -1) if inputs.old_logprobs is None else None
        means = {f"actor/{name}": value / max(len(steps), 1) for name, value in losses.items()}
        return UpdateResult(stats, means, steps, logprobs)


def mini_batch_weights(
    batch: RoleBatch,
    rows: tuple[int, ...],
    mode: str,
    norm: int,
    kept: Tensor | None = None,
    token_counts: Sequence[int] | None = None,
) -> Tensor:
    """fp32 [n, R]: each token's share of the mini-batch's global loss, 0 on other rows.

    The denominators come from the step's lengths, or from token_counts where only the tokens in
    `kept`, bool [n, R], count: every rank knows them, so they are global.
    """
    counts = batch.dealt.rows.counted if token_counts is None else token_counts
    lengths = [counts[row] for row in rows]
    local = torch.tensor(
        [batch.index[row] for row in rows if row in batch.index], dtype=torch.int64
    )
    weights = torch.zeros(len(batch.index), batch.width)
    weights[local] = token_weights(
        (batch.mask if kept is None else kept)[local],
        mode,  # type: ignore[arg-type]
        global_tokens=float(sum(lengths)),
        global_sequences=float(sum(length > 0 for length in lengths)),
        norm_length=float(norm),
    )
    return weights


def _loss_inputs(
    batch: RoleBatch, rows: tuple[int, ...], inputs: PolicyInputs, settings: PolicyLossSettings
) -> LossInputs:
    weights = mini_batch_weights(
        batch,
        rows,
        settings.loss_agg_mode,
        settings.norm_length,
        inputs.kept,
        inputs.token_counts,
    )

    def flat(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor.reshape(-1)

    return LossInputs(
        weights=weights.reshape(-1),
        old_logprobs=flat(inputs.old_logprobs),
        ref_logprobs=flat(inputs.ref_logprobs),
        advantages=flat(inputs.advantages),
        importance=flat(inputs.importance),
        selected=flat(inputs.selected),
    )


def _policy_loss(settings: PolicyLossSettings, width: int) -> Loss:
    """width: R, the second dimension of the batch's response tensors."""
    chosen = policy_loss(settings.policy_loss)

    def loss(output: Any, batch: MicroBatch) -> tuple[Tensor, dict[str, Tensor]]:
        logprobs, entropy = output
        device, inputs = logprobs.device, batch.inputs
        assert inputs.weights is not None and inputs.advantages is not None
        weights, mask = inputs.weights.to(device), torch.ones_like(logprobs, dtype=torch.bool)
        old = logprobs.detach() if inputs.old_logprobs is None else inputs.old_logprobs.to(device)
        rows = _Rows(batch.slot.to(device), width) if chosen.needs_sequences else _OneRow()
        importance, selected = inputs.importance, inputs.selected
        corrected = weights if importance is None else weights * importance.to(device)
        tokens = PolicyLossInputs(
            logprobs=rows.place(logprobs),
            old_logprobs=rows.place(old),
            advantages=rows.place(inputs.advantages.to(device)),
            mask=rows.place(mask),
            weights=rows.place(corrected),
            entropy=rows.place(entropy) if settings.entropy_coef else None,
            selected=None if selected is None else rows.place(selected.to(device)),
        )
        policy, stats = compute_policy_loss(settings.policy_loss, tokens, settings.options)
        value, report = (
            policy,
            {
                "stats": stats.to_vector().detach().cpu(),
                "logprobs": logprobs.detach(),
                "pg_loss": policy.detach().clone(),
            },
        )
        if settings.entropy_coef:
            value = value + entropy_loss(entropy, mask, weights, settings.entropy_coef)
        if settings.kl_loss_coef:
            assert inputs.ref_logprobs is not None
            kl = kl_estimate(logprobs, inputs.ref_logprobs.to(device), mask, settings.kl_loss_type)
            mean = weighted_sum(kl, mask, weights)
            report["kl_loss"], value = mean.detach().clone(), value + settings.kl_loss_coef * mean
        report["loss"] = value.detach().clone()
        return value, report

    return loss


class _OneRow:
    """Scored tokens as they come, for losses that look at each alone."""

    def place(self, values: Tensor) -> Tensor:
        """[n] -> [1, n]."""
        return values[None]


class _Rows:
    """Scored tokens put back into the responses that they are of."""

    def __init__(self, slot: Tensor, width: int) -> None:
        """slot: int64 [n], row * width + column."""
        samples, self._row = torch.unique(slot // width, return_inverse=True)
        self._column = slot % width
        longest = int(self._column.max()) + 1 if slot.numel() else 0
        self._shape = (len(samples), longest)

    def place(self, values: Tensor) -> Tensor:
        """[n] -> [samples, longest], 0 or False where there is no token."""
        return values.new_zeros(self._shape).index_put((self._row, self._column), values)

"""Advantages of a scored step, and which of its tokens the policy learns from."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from megarl.algorithms.advantages import (
    AdvantageInputs,
    estimator,
    last_tokens,
    sequence_rewards,
    token_level_rewards,
    whitening,
)
from megarl.algorithms.advantages import compute_advantages as estimate
from megarl.algorithms.kl import kl_estimate
from megarl.roles.megatron_role import RoleBatch
from megarl.train.learner import Learner
from megarl.train.phases.compare import LossTokens, compare_policies, loss_tokens
from megarl.train.phases.rows import between
from megarl.train.phases.score import ScoredStep
from megarl.train.phases.select import select_tokens


@dataclass
class AdvantageStep:
    """A scored step with its advantages."""

    scored: ScoredStep
    advantages: Tensor | None
    """fp32 [n, R] on the actor's owners."""
    returns: Tensor | None
    """fp32 [n, R] on the critic's owners."""
    tokens: LossTokens
    selected: Tensor | None
    """bool [n, R] on the actor's owners; None for losses that select nothing."""
    metrics: dict[str, float]


def compute_advantages(run: Learner, scored: ScoredStep) -> AdvantageStep:
    """Advantages on the actor's owners; the critic's targets travel to the critic's owners.

    RunError where the engine's log-probs are too far from the trainer's.
    """
    with run.verb("advantages"):
        metrics = dict(scored.metrics)
        advantages, returns = _estimate(run, scored)
        if run.needs_old_logprobs(len(scored.rows.mini_batches)):
            # It steers the KL controller, whose weight of this step has been used by now.
            metrics |= compare_policies(run, scored)
        tokens, found = loss_tokens(run, scored)
        selected = select_tokens(run, scored, advantages, tokens.kept)
        if run.critic is not None:
            owners = (run.actor, scored.actor), (run.critic, scored.critic)
            returns = between(run, scored.rows, returns, *owners)
    return AdvantageStep(scored, advantages, returns, tokens, selected, metrics | found)


def _estimate(run: Learner, scored: ScoredStep) -> tuple[Tensor | None, Tensor | None]:
    """Advantages and returns, fp32 [n, R] on the actor's owners."""
    algorithm, actor = run.config.algorithm, scored.actor
    chosen, advantages, returns = estimator(algorithm.adv_estimator), None, None
    whitens = chosen.needs_values and algorithm.whiten_advantages
    normalization = chosen.normalization or (whitening if whitens else None)
    sums = torch.zeros(normalization.num_sums if normalization else 0, dtype=torch.float64)
    if actor is not None and run.actor.is_owner:
        inputs = _inputs(run, scored, actor)
        advantages, returns = estimate(algorithm.adv_estimator, inputs)
        if normalization is not None:
            sums = normalization.sums(inputs, advantages)
    if normalization is not None:
        sums = run.control.sum(sums)
        if advantages is not None and actor is not None:
            advantages = normalization.apply(advantages, actor.mask, sums)
    return advantages, returns


def _inputs(run: Learner, scored: ScoredStep, batch: RoleBatch) -> AdvantageInputs:
    """The estimator's inputs on an owner."""
    algorithm, table, index = run.config.algorithm, scored.table, list(batch.index)
    reward, mask, kl, process = table.reward[index], batch.mask, None, scored.process
    if scored.ref_logprobs is not None and scored.old_logprobs is not None:
        kl = kl_estimate(scored.old_logprobs, scored.ref_logprobs, mask, algorithm.kl_penalty)
    coefficient = run.kl_controller.value if algorithm.kl_coef > 0 else 0.0
    steps, score = None, reward
    if process is not None:
        steps = _step_ends(process, mask, has_outcome=bool((table.reward != 0).any()))
        process = torch.where(mask, process, 0.0).nan_to_num()
        score = reward + process.sum(-1)
    return AdvantageInputs(
        mask=mask,
        rewards=token_level_rewards(reward, kl, mask, coefficient, process),
        scores=sequence_rewards(score, kl, mask, coefficient),
        group=table.group[index].long(),
        values=scored.values,
        gamma=algorithm.gamma,
        lam=algorithm.lam,
        baselines=None if table.baseline is None else table.baseline[index],
        steps=steps,
    )


def _step_ends(process: Tensor, mask: Tensor, *, has_outcome: bool) -> Tensor:
    """bool [n, R]: tokens with a process reward, and the last ones where whole responses have one.

    has_outcome: whether any response of the step, on any rank, has one; else all of a group would
    not count alike.
    """
    steps = ~process.isnan() & mask
    if not has_outcome:
        return steps
    last = torch.zeros_like(mask).scatter_(1, last_tokens(mask)[:, None], True)
    return steps | (last & mask)

"""How far apart the policies of a step are: engine, trainer, reference; and what follows."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from megarl.algorithms.corrections import correct
from megarl.algorithms.kl import kl_estimate
from megarl.algorithms.masked import masked_sum
from megarl.algorithms.shaping import overlong_filter
from megarl.algorithms.stats import CorrectionStats
from megarl.train.learner import Learner
from megarl.train.mismatch import MismatchHistogram, check_mismatch
from megarl.train.phases.score import ScoredStep


@dataclass
class LossTokens:
    """Which tokens the policy learns from, and how much."""

    importance: Tensor | None = None
    """fp32 [n, R] on the actor's owners; None: all 1."""
    kept: Tensor | None = None
    """bool [n, R] on the actor's owners; None: all response tokens."""
    counts: tuple[int, ...] | None = None
    """How many tokens of each row are kept, of the whole step; None with `kept`."""


def compare_policies(run: Learner, scored: ScoredStep) -> dict[str, float]:
    """Metrics of KL and mismatch, with the limits that stop a run; needs the old log-probs.

    Tells the KL controller. RunError where engine and trainer are too far apart.
    """
    return _reference_kl(run, scored) | _mismatch(run, scored)


def loss_tokens(run: Learner, scored: ScoredStep) -> tuple[LossTokens, dict[str, float]]:
    """Importance weights and what is left out, by the corrections and by overlong filtering."""
    found, metrics = _corrected(run, scored), {}
    table, actor = scored.table, scored.actor
    if run.config.algorithm.overlong_filtering:
        metrics["overlong_filtered"] = float((~table.finished).double().mean())
        finished = table.finished.tolist()
        counts = found.counts or scored.rows.counted
        found.counts = tuple(n if ended else 0 for n, ended in zip(counts, finished, strict=True))
        if actor is not None:
            mask = actor.mask if found.kept is None else found.kept
            found.kept = overlong_filter(mask, table.finished[list(actor.index)])
    return found, metrics


def _corrected(run: Learner, scored: ScoredStep) -> LossTokens:
    if not run.correction.is_on:
        return LossTokens()
    found, own = LossTokens(), {}
    if scored.actor is not None and scored.correction is not None:
        found.importance, found.kept = scored.correction.weights, scored.correction.kept
        own = dict(zip(scored.actor.index, found.kept.sum(-1).tolist(), strict=True))
    counts = {row: n for answer in run.control.gather(own) for row, n in answer.items()}
    found.counts = tuple(counts[row] for row in range(len(scored.table)))
    return found


def _reference_kl(run: Learner, scored: ScoredStep) -> dict[str, float]:
    """Mean KL of a response token to the reference, told to the controller; {} without one."""
    if run.reference is None:
        return {}
    kl = 0.0
    if scored.ref_logprobs is not None and scored.actor is not None:
        assert scored.old_logprobs is not None
        mask = scored.actor.mask
        kl = float(
            masked_sum(kl_estimate(scored.old_logprobs, scored.ref_logprobs, mask, "k1"), mask)
        )
    kl = run.control.agree({"kl": kl})["kl"] / max(sum(scored.rows.counted), 1)
    metrics = {"actor/ref_kl": kl, "actor/kl_coef": run.kl_controller.value}
    if run.step >= run.config.algorithm.critic_warmup:  # before that the policy stands still
        run.kl_controller.update(kl, len(scored.table))
    return metrics


def _mismatch(run: Learner, scored: ScoredStep) -> dict[str, float]:
    """How far the trainer's log-probs are from the engine's, with the limits that stop a run."""
    histogram, sums, largest = MismatchHistogram(), CorrectionStats.zero().to_vector(), 0.0
    # Older weights differ by what was learned since: only fresh samples tell of the engines.
    fresh = MismatchHistogram() if run.config.rollout.max_staleness else None
    old, rollout, actor = scored.old_logprobs, scored.rollout_logprobs, scored.actor
    if old is not None and rollout is not None and actor is not None:
        histogram.add((old - rollout)[actor.mask])
        if fresh is not None:
            made_now = scored.table.weight_version[list(actor.index)] == run.actor.weight_version
            fresh.add((old - rollout)[actor.mask & made_now[:, None]])
        scored.correction = correct(old, rollout, actor.mask, run.correction)
        sums = scored.correction.stats.to_vector()
        largest = float(scored.correction.max_ratio)
    histogram = histogram.reduced(run.control.sum, run.control.gather)
    limits = run.config.observe
    fresh = fresh.reduced(run.control.sum, run.control.gather) if fresh is not None else histogram
    check_mismatch(fresh, limits.logprob_diff_mean_limit, limits.logprob_diff_p99_limit)
    stats = CorrectionStats.from_vector(run.control.sum(sums))
    if not stats.tokens:  # samples without log-probs of what made them
        return {}
    return histogram.metrics() | stats.metrics(max(run.control.gather(largest)))

"""Which tokens a covariance loss treats apart: a pick from each whole mini-batch, on all ranks."""

from __future__ import annotations

import torch
from torch import Tensor

from megarl.algorithms.policy import policy_loss
from megarl.algorithms.policy.covariance import (
    Candidates,
    CovarianceSums,
    covariance_sums,
    covariances,
    num_selected,
    select,
)
from megarl.data.seeds import stable_hash
from megarl.train.learner import Learner
from megarl.train.phases.score import ScoredStep


def select_tokens(
    run: Learner, scored: ScoredStep, advantages: Tensor | None, kept: Tensor | None
) -> Tensor | None:
    """bool [n, R] on the actor's owners, for policy losses that read it; None for others.

    advantages: fp32 [n, R], kept: bool [n, R], the tokens that count, or None for all of the
    responses; both on the actor's owners. All ranks call it together.
    """
    selection = policy_loss(run.policy_settings.policy_loss).selection
    if selection is None:
        return None
    options, batches = run.policy_settings.options, scored.rows.mini_batches
    parts = [_Part(scored, advantages, kept, rows) for rows in batches]
    sums = torch.stack([part.sums().to_vector() for part in parts])
    totals = run.control.sum(sums.flatten()).view_as(sums)
    share, seed = selection.share(options), stable_hash(run.config.run.seed, run.step, "select")
    counts, candidates = [], []
    for part, total in zip(parts, totals, strict=True):
        means = CovarianceSums.from_vector(total)
        counts.append(num_selected(share, float(means.tokens)))
        covariance = covariances(part.old, part.advantages, part.mask, means)
        candidates.append(
            selection.candidates(covariance, part.mask, part.rows, counts[-1], options, seed)
        )
    found = run.control.gather(candidates)
    if scored.actor is None or advantages is None:
        return None
    selected = torch.zeros_like(scored.actor.mask)
    for index, (part, count) in enumerate(zip(parts, counts, strict=True)):
        of_all: list[Candidates] = [answer[index] for answer in found]
        selected[part.local] = select(of_all, count, part.rows, part.mask)
    return selected


class _Part:
    """This owner's rows of one mini-batch; none on ranks that own nothing."""

    def __init__(
        self,
        scored: ScoredStep,
        advantages: Tensor | None,
        kept: Tensor | None,
        rows: tuple[int, ...],
    ) -> None:
        batch = scored.actor
        if batch is None or advantages is None:
            self.rows = self.local = torch.zeros(0, dtype=torch.int64)
            self.old = self.advantages = torch.zeros(0, scored.rows.width)
            self.mask = torch.zeros(0, scored.rows.width, dtype=torch.bool)
            return
        assert scored.old_logprobs is not None
        own = [row for row in rows if row in batch.index]
        self.rows = torch.tensor(own, dtype=torch.int64)
        self.local = torch.tensor([batch.index[row] for row in own], dtype=torch.int64)
        self.old = scored.old_logprobs[self.local]
        self.mask = (batch.mask if kept is None else kept)[self.local]
        self.advantages = advantages[self.local]

    def sums(self) -> CovarianceSums:
        """What these rows add to the means."""
        return covariance_sums(self.old, self.advantages, self.mask)

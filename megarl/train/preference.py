"""Learning preferences: the preferred answer of each pair is to score higher than the other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from megarl.algorithms.eval_metrics import PAIR_METRICS
from megarl.data.preferences import Pair
from megarl.mesh.control import Control
from megarl.roles.megatron_role import RoleBatch
from megarl.roles.reward_model import RewardModel
from megarl.roles.step_rows import StepRows


class Preference:
    """The objective of a reward model."""

    def __init__(self, control: Control, model: RewardModel) -> None:
        self._control, self.role = control, model

    def step(self, pairs: Sequence[Pair]) -> dict[str, float]:
        """One optimizer step; all ranks call it with the same pairs."""
        rows, batch = self._take(pairs)
        summed = ("loss", "right", "chosen", "rejected")
        facts = dict.fromkeys((*summed, "grad_norm", "lr"), 0.0)
        if batch is not None:
            margins = torch.tensor([pairs[row].margin for row in batch.index])
            sums, step = self.role.train_on_pairs(batch, rows.mini_batches[0], margins, len(pairs))
            facts |= dict(zip(summed, sums.tolist(), strict=True))
            if self._control.is_rank(self.role.pool.ranks[self.role.layout.owner(0)]):
                facts |= {"grad_norm": step.grad_norm, "lr": step.lr}
        found = self._control.agree(facts)
        named = _per_pair([found[name] for name in summed], len(pairs))
        rates = {"grad_norm": found["grad_norm"], "lr": found["lr"]}
        return named | rates | {"tokens": float(sum(rows.length))}

    def evaluate(self, pairs: Sequence[Pair], batch_size: int) -> dict[str, float]:
        """Loss, accuracy and scores over all pairs."""
        scores: dict[int, tuple[float, float]] = {}
        for start in range(0, len(pairs), batch_size):
            _, batch = self._take(pairs[start : start + batch_size])
            for answer in self._control.gather(self.role.pair_scores(batch)):
                scores |= {start + row: found for row, found in answer.items()}
        chosen, rejected = torch.tensor([scores[i] for i in range(len(pairs))]).double().unbind(1)
        margin = torch.tensor([pair.margin for pair in pairs], dtype=torch.float64)
        loss = -torch.nn.functional.logsigmoid(chosen - rejected - margin)
        right = (chosen > rejected).double()
        sums = [float(each.sum()) for each in (loss, right, chosen, rejected)]
        return _per_pair(sums, len(pairs))

    def probe(self, pairs: Sequence[Pair]) -> dict[str, Any]:
        """Some samples and their scores, to compare the written model with."""
        _, batch = self._take(pairs[:8])
        found = {
            row: scores
            for answer in self._control.gather(self.role.pair_scores(batch))
            for row, scores in answer.items()
        }
        samples = [p.prompt_ids + ids for p in pairs[:8] for ids in (p.chosen_ids, p.rejected_ids)]
        return {"token_ids": samples, "scores": [s for row in sorted(found) for s in found[row]]}

    def _take(self, pairs: Sequence[Pair]) -> tuple[StepRows, RoleBatch | None]:
        """The pairs as rows of one mini-batch, and this slice's share of them."""
        everyone = tuple(range(len(pairs)))
        rows = StepRows(
            group=everyone,
            prompt_length=tuple(len(p.prompt_ids) + len(p.chosen_ids) for p in pairs),
            response_length=tuple(len(p.prompt_ids) + len(p.rejected_ids) for p in pairs),
            mini_batches=(everyone,),
        )
        dealt, tokens = self.role.deal(rows), {}
        for row in dealt.map.rows_of(self._control.rank):
            p = pairs[row]
            tokens[row] = torch.tensor(p.prompt_ids + p.chosen_ids + p.prompt_ids + p.rejected_ids)
        return rows, self.role.take_rows(dealt, tokens)


def _per_pair(sums: Sequence[float], count: int) -> dict[str, float]:
    """Means over pairs, from sums of loss, right ones, preferred and other scores."""
    loss, right, chosen, rejected = (each / count for each in sums)
    means = loss, right, chosen, rejected, chosen - rejected
    return dict(zip(PAIR_METRICS, means, strict=True))

"""The reward model: one number per sample, read off at its last token; and how pairs train it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from megarl.models.micro_batch import MicroBatch, build_last_token_batch
from megarl.models.optimizer import StepResult
from megarl.models.schedule import Loss
from megarl.roles.critic import value_reporter
from megarl.roles.megatron_role import MegatronRole, RoleBatch


class RewardModel(MegatronRole):
    """A model with a scalar head (Hugging Face's ...ForSequenceClassification)."""

    def scores(self, batch: RoleBatch | None) -> dict[int, float]:
        """Row -> score of prompt and response together, on owners; {} elsewhere."""
        if batch is None:
            return {}
        length = batch.prompt_length + batch.response_length
        micro = [
            self._last_tokens(batch.tokens, length, rows)
            for rows in self.cut(batch, batch.all_rows)
        ]
        found = self._read_off(micro, len(batch.index))
        return {row: float(found[index]) for row, index in batch.index.items()} if found else {}

    def pair_scores(self, batch: RoleBatch | None) -> dict[int, tuple[float, float]]:
        """Row -> scores of its two samples, on owners; {} elsewhere.

        A row of the batch is a pair: one sample where the prompt stands, the other behind it.
        """
        if batch is None:
            return {}
        micro = self._pairs(batch, batch.all_rows)
        found = self._read_off(micro, 2 * len(batch.index))
        if not found:
            return {}
        return {row: (found[2 * i], found[2 * i + 1]) for row, i in batch.index.items()}

    def train_on_pairs(
        self, batch: RoleBatch, rows: Sequence[int], margins: Tensor, count: int
    ) -> tuple[Tensor, StepResult]:
        """One optimizer step on pairs (preferred, other), see `pair_loss`.

        margins: fp32 [n], of this slice's pairs; count: pairs of the step on all slices. Returns
        sums over this owner's pairs of (loss, right, preferred score, other score) as fp64 [4], 0
        elsewhere; and the step.
        """

        def rows_of(one: MicroBatch) -> set[int]:
            return set((one.slot // 2).tolist())

        micro = self._pairs(batch, rows)
        loss = pair_loss(margins, count)
        reports, step = self.train_micro_batches(batch, micro, rows_of, rows, loss)
        sums = torch.zeros(4, dtype=torch.float64)
        for _, report in reports if self.is_owner else []:
            sums += report["sums"]
        return sums, step

    def _pairs(self, batch: RoleBatch, rows: Sequence[int]) -> list[MicroBatch]:
        """Micro-batches of whole pairs: samples 2i and 2i + 1 are those of local row i."""
        length = torch.stack([batch.prompt_length, batch.response_length], dim=1).reshape(-1)
        tokens = torch.zeros(len(length), max(length.tolist(), default=1), dtype=torch.int64)
        for index, row in enumerate(batch.tokens):
            first, second = length[2 * index : 2 * index + 2].tolist()
            tokens[2 * index, :first] = row[:first]
            tokens[2 * index + 1, :second] = row[first : first + second]
        return [
            self._last_tokens(tokens, length, [s for row in micro for s in (2 * row, 2 * row + 1)])
            for micro in self.cut(batch, rows)
        ]

    def _last_tokens(self, tokens: Tensor, length: Tensor, rows: list[int]) -> MicroBatch:
        return build_last_token_batch(
            tokens, length, rows, self.pad_to_multiple, packing=self._limit.packing
        )

    def _read_off(self, micro: Sequence[MicroBatch], count: int) -> list[float]:
        """The score of each of `count` samples, on owners; [] elsewhere."""
        reports = self.engine.forward(micro, value_reporter)
        if not self.is_owner:
            return []
        scores = torch.zeros(count)
        for one, report in zip(micro, reports, strict=True):
            scores[one.slot] = report["values"].cpu()
        return [float(score) for score in scores]


def pair_loss(margins: Tensor, count: int) -> Loss:
    """Bradley-Terry: -log sigmoid(r_preferred - r_other - margin), the mean over `count` pairs.

    As in Llama 2 (arXiv:2307.09288), section 3.2.2, with the margin m(r) there; without one it is
    the loss of InstructGPT (arXiv:2203.02155). margins: fp32 [n], by local row.
    """

    def loss(output: Any, batch: MicroBatch) -> tuple[Tensor, dict[str, Tensor]]:
        preferred, other = output[0::2], output[1::2]
        margin = margins[batch.slot[0::2] // 2].to(output.device)
        each = -logsigmoid(preferred - other - margin)
        value = each.sum() / count
        right = (preferred > other).double()
        sums = [each.double(), right, preferred.double(), other.double()]
        report = torch.stack([part.sum() for part in sums]).detach().cpu()
        return value, {"loss": value.detach().clone(), "sums": report}

    return loss

"""The reward model: one number per sample, read off at its last token."""

from __future__ import annotations

import torch

from megarl.models.micro_batch import build_last_token_batch
from megarl.roles.critic import value_reporter
from megarl.roles.megatron_role import MegatronRole, RoleBatch


class RewardModel(MegatronRole):
    """A frozen model with a scalar head (Hugging Face's ...ForSequenceClassification)."""

    def scores(self, batch: RoleBatch | None) -> dict[int, float]:
        """Row -> score of prompt and response together, on owners; {} elsewhere."""
        if batch is None:
            return {}
        length = batch.prompt_length + batch.response_length
        micro = [
            build_last_token_batch(batch.tokens, length, rows, self.pad_to_multiple)
            for rows in self.cut(batch, batch.all_rows)
        ]
        reports = self.engine.forward(micro, value_reporter)
        if not self.is_owner:
            return {}
        scores = torch.zeros(len(batch.index))
        for one, report in zip(micro, reports, strict=True):
            scores[one.slot] = report["values"].cpu()
        return {row: float(scores[index]) for row, index in batch.index.items()}

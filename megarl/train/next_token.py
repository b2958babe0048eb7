"""Learning texts: the mean negative log-prob of the tokens that are to be learned."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from megarl.data.examples import Example
from megarl.mesh.control import Control
from megarl.models.micro_batch import LossInputs, MicroBatch
from megarl.roles.actor import Actor, logprob_reporter, sequence_logprobs
from megarl.roles.megatron_role import RoleBatch
from megarl.roles.step_rows import StepRows


class NextToken:
    """The objective of pretraining and of supervised fine-tuning."""

    def __init__(self, control: Control, actor: Actor) -> None:
        self._control, self.role = control, actor

    def step(self, examples: Sequence[Example]) -> dict[str, float]:
        """One optimizer step; all ranks call it with the same examples."""
        rows, batch, weights = self._take(examples)
        facts = {"loss": 0.0, "grad_norm": 0.0, "lr": 0.0}
        if batch is not None:
            inputs = LossInputs(weights=weights.reshape(-1))
            reports, step = self.role.train_on(batch, rows.mini_batches[0], inputs, _loss)
            if self.role.is_owner:
                facts["loss"] = sum(float(report["loss"]) for _, report in reports)
            if self._control.is_rank(self.role.pool.ranks[self.role.layout.owner(0)]):
                facts |= {"grad_norm": step.grad_norm, "lr": step.lr}
        found = self._control.agree(facts)
        found["probability"] = math.exp(-found["loss"])
        return found | {"tokens": float(sum(rows.length))}

    def evaluate(self, examples: Sequence[Example], batch_size: int) -> dict[str, float]:
        """The loss over all learned tokens of the examples, and exp(-loss) as `probability`."""
        total = count = 0.0
        for start in range(0, len(examples), batch_size):
            part = examples[start : start + batch_size]
            _, batch, weights = self._take(part)
            logprobs = self.role.score(batch, logprob_reporter, "logprobs")
            learned = sum(int(example.learned.sum()) for example in part)
            own = 0.0 if logprobs is None else -float((logprobs * weights).double().sum()) * learned
            total += self._control.agree({"loss": own})["loss"]
            count += learned
        loss = total / max(count, 1.0)
        return {"loss": loss, "probability": math.exp(-loss)}

    def probe(self, examples: Sequence[Example]) -> dict[str, Any]:
        """Some tokens, and their log-probs after the first, to compare the written model with."""
        tokens = [int(token) for example in examples[:8] for token in example.tokens][:64]
        found = self._control.gather(sequence_logprobs(self.role, tokens))
        return {"token_ids": tokens, "logprobs": next(one for one in found if one is not None)}

    def _take(self, examples: Sequence[Example]) -> tuple[StepRows, RoleBatch | None, Tensor]:
        """The examples as one mini-batch, this slice's share, and each token's share of the loss.

        The share is fp32 [n, R] over this slice's rows; the shares of all slices sum to 1.
        """
        everyone = tuple(range(len(examples)))
        rows = StepRows(
            group=everyone,
            prompt_length=tuple(example.prompt_length for example in examples),
            response_length=tuple(e.tokens.numel() - e.prompt_length for e in examples),
            mini_batches=(everyone,),
        )
        tokens = {row: example.tokens for row, example in enumerate(examples)}
        batch = self.role.take_rows(self.role.deal(rows), tokens)
        if batch is None:
            return rows, None, torch.zeros(0)
        count = max(sum(int(example.learned.sum()) for example in examples), 1)
        shares = {
            row: examples[row].learned[examples[row].prompt_length :].float() / count
            for row in batch.index
        }
        return rows, batch, batch.from_rows(shares)


def _loss(output: Any, batch: MicroBatch) -> tuple[Tensor, dict[str, Tensor]]:
    logprobs, _ = output
    assert batch.inputs.weights is not None
    loss = -(logprobs * batch.inputs.weights.to(logprobs.device)).sum()
    return loss, {"loss": loss.detach().clone()}

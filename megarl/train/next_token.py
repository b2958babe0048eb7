"""Learning texts: the mean negative log-prob of the tokens that are to be learned."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from megarl.algorithms.eval_metrics import TEXT_METRICS
from megarl.mesh.control import Control
from megarl.models.micro_batch import LossInputs, MicroBatch
from megarl.roles.actor import Actor, logprob_reporter, sequence_logprobs
from megarl.roles.megatron_role import RoleBatch
from megarl.roles.step_rows import StepRows


class Text(Protocol):
    """One sequence and what of it is learned; lengths are known without reading it."""

    @property
    def length(self) -> int:
        """Tokens."""
        ...

    @property
    def prompt_length(self) -> int:
        """Tokens at its start that are not learned, at least 1."""
        ...

    @property
    def tokens(self) -> Tensor:
        """int64 [length]."""
        ...

    @property
    def learned(self) -> Tensor:
        """bool [length]: the tokens whose log-prob is in the loss."""
        ...


class NextToken:
    """The objective of pretraining and of supervised fine-tuning."""

    def __init__(self, control: Control, actor: Actor) -> None:
        self._control, self.role = control, actor

    def step(self, examples: Sequence[Text]) -> dict[str, float]:
        """One optimizer step; all ranks call it with the same texts."""
        rows, batch, learned, total = self._take(examples)
        facts = {"loss": 0.0, "grad_norm": 0.0, "lr": 0.0}
        if batch is not None:
            inputs = LossInputs(weights=(learned / total).reshape(-1))
            reports, step = self.role.train_on(batch, rows.mini_batches[0], inputs, _loss)
            if self.role.is_owner:
                facts["loss"] = sum(float(report["loss"]) for _, report in reports)
            if self._control.is_rank(self.role.pool.ranks[self.role.layout.owner(0)]):
                facts |= {"grad_norm": step.grad_norm, "lr": step.lr}
        found = self._control.agree(facts)
        found["probability"] = math.exp(-found["loss"])
        return found | {"tokens": float(sum(rows.length))}

    def evaluate(self, examples: Sequence[Text], batch_size: int) -> dict[str, float]:
        """The loss over all learned tokens of the texts, and exp(-loss) as `probability`."""
        loss = count = 0.0
        for start in range(0, len(examples), batch_size):
            _, batch, learned, total = self._take(examples[start : start + batch_size])
            logprobs = self.role.score(batch, logprob_reporter, "logprobs")
            own = 0.0 if logprobs is None else -float((logprobs * learned).double().sum())
            loss += self._control.agree({"loss": own})["loss"]
            count += total
        loss /= max(count, 1.0)
        return dict(zip(TEXT_METRICS, (loss, math.exp(-loss)), strict=True))

    def probe(self, examples: Sequence[Text]) -> dict[str, Any]:
        """Some tokens, and their log-probs after the first, to compare the written model with."""
        tokens = [int(token) for example in examples[:8] for token in example.tokens][:64]
        found = self._control.gather(sequence_logprobs(self.role, tokens))
        return {"token_ids": tokens, "logprobs": next(one for one in found if one is not None)}

    def _take(self, examples: Sequence[Text]) -> tuple[StepRows, RoleBatch | None, Tensor, int]:
        """The texts as one mini-batch, this slice's share, what is learned of it, and how much.

        What is learned is fp32 [n, R] over this slice's rows, 1 or 0; how much: tokens of all
        slices, at least 1. Each text is read on the rank that owns it.
        """
        everyone = tuple(range(len(examples)))
        rows = StepRows(
            group=everyone,
            prompt_length=tuple(example.prompt_length for example in examples),
            response_length=tuple(e.length - e.prompt_length for e in examples),
            mini_batches=(everyone,),
        )
        dealt = self.role.deal(rows)
        own = {row: examples[row] for row in dealt.map.rows_of(self._control.rank)}
        count = sum(int(example.learned.sum()) for example in own.values())
        total = max(int(self._control.agree({"learned": float(count)})["learned"]), 1)
        batch = self.role.take_rows(dealt, {row: example.tokens for row, example in own.items()})
        if batch is None:
            return rows, None, torch.zeros(0), total
        learned = torch.zeros(len(batch.index), batch.width)
        if self.role.is_owner:
            flags = {row: one.learned[one.prompt_length :].float() for row, one in own.items()}
            learned = batch.from_rows(flags)
        return rows, batch, self.role.broadcast(learned), total


def _loss(output: Any, batch: MicroBatch) -> tuple[Tensor, dict[str, Tensor]]:
    logprobs, _ = output
    assert batch.inputs.weights is not None
    loss = -(logprobs * batch.inputs.weights.to(logprobs.device)).sum()
    return loss, {"loss": loss.detach().clone()}

"""Pretraining on a text file: next-token loss of the actor's model, from new weights."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import AutoTokenizer

from megarl.config.schema import Config
from megarl.data.order import PromptOrder
from megarl.data.texts import Text, read_texts
from megarl.mesh.control import Control
from megarl.mesh.run_plan import RunPlan
from megarl.mesh.universe import Universe
from megarl.models.micro_batch import LossInputs, MicroBatch
from megarl.models.transformer_config import torch_dtype
from megarl.observe.logger import Logger
from megarl.observe.progress import Progress
from megarl.roles.actor import Actor, mini_batch_weights, sequence_logprobs
from megarl.roles.export import export_hf
from megarl.roles.step_rows import StepRows
from megarl.train.build import Builder


def pretrain(config: Config, plan: RunPlan, universe: Universe, control: Control) -> None:
    """Train on this rank, then write `<run.dir>/model` and `<run.dir>/probe.json`.

    data.train_path is jsonl or parquet. With data.label_column null, the column data.prompt_column
    holds texts that are learned whole; else the label is learned and the prompt before it is given.
    Each optimizer step sees algorithm.global_batch_size rows. The probe holds some tokens and their
    log-probs by Megatron, to compare the written model with.
    """
    tokenizer = AutoTokenizer.from_pretrained(plan.actor.path)
    data = config.data
    longest = data.max_prompt_length + data.max_response_length
    texts = read_texts(data.train_path, data.prompt_column, data.label_column, tokenizer, longest)
    actor: Actor = Builder(config, plan, universe).role(
        "actor", Actor, plan.actor, config.actor.model, config.actor.optimizer, config.run.steps
    )
    _train(config, universe, control, actor, texts)
    control.enter("export")
    dtype = torch_dtype(config.actor.model.dtype)
    folder = Path(config.run.dir)
    export_hf(universe, actor, plan.actor.shape, dtype, folder / "model", plan.actor.path)
    probe = [int(token) for text in texts[:8] for token in text.tokens][:64]
    logprobs = [one for one in control.gather(sequence_logprobs(actor, probe)) if one is not None]
    if universe.rank == 0:
        content = {"token_ids": probe, "logprobs": logprobs[0]}
        (folder / "probe.json").write_text(json.dumps(content))


def _train(
    config: Config, universe: Universe, control: Control, actor: Actor, texts: Sequence[Text]
) -> None:
    batch_size = config.algorithm.global_batch_size
    order = PromptOrder(len(texts), batch_size, config.run.seed)
    first = universe.rank == 0
    logger = Logger(config.observe.use_tensorboard, config.run.dir) if first else None
    progress = Progress("pretrain", config.run.steps, config.observe.progress) if first else None
    for step in range(config.run.steps):
        control.step = step + 1
        started = time.perf_counter()
        metrics = _step(control, actor, [texts[index] for index in order.next()])
        wall = time.perf_counter() - started
        metrics |= {"timing_s/step": wall, "perf/tokens_per_s": metrics["tokens"] / wall}
        if logger is not None and progress is not None:
            logger.log(metrics, step + 1)
            progress.advance(loss=metrics["loss"], tokens_per_s=metrics["perf/tokens_per_s"])
    if logger is not None and progress is not None:
        logger.close()
        progress.close()


def _step(control: Control, actor: Actor, texts: Sequence[Text]) -> dict[str, float]:
    """One optimizer step on a batch of texts."""
    control.enter("pretrain")
    count = len(texts)
    rows = StepRows(
        group=tuple(range(count)),
        prompt_length=tuple(text.prompt_length for text in texts),
        response_length=tuple(text.tokens.numel() - text.prompt_length for text in texts),
        mini_batches=(tuple(range(count)),),
    )
    dealt = actor.deal(rows)
    batch = actor.take_rows(dealt, {row: text.tokens for row, text in enumerate(texts)})
    facts = {"loss": 0.0, "grad_norm": 0.0, "lr": 0.0}
    if batch is not None:
        weights = mini_batch_weights(batch, rows.mini_batches[0], "token-mean", 1)
        inputs = LossInputs(weights=weights.reshape(-1))
        reports, step = actor.train_on(batch, rows.mini_batches[0], inputs, _next_token_loss)
        if actor.is_owner:
            facts["loss"] = sum(float(report["loss"]) for _, report in reports)
        if control.is_rank(actor.pool.ranks[actor.layout.owner(0)]):
            facts |= {"grad_norm": step.grad_norm, "lr": step.lr}
    return control.agree(facts) | {"tokens": float(sum(rows.length))}


def _next_token_loss(output: Any, batch: MicroBatch) -> tuple[Tensor, dict[str, Tensor]]:
    logprobs, _ = output
    assert batch.inputs.weights is not None
    loss = -(logprobs * batch.inputs.weights.to(logprobs.device)).sum()
    return loss, {"loss": loss.detach().clone()}

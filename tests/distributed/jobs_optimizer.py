"""Jobs about the optimizer: small steps in bf16, rates that change, memory that leaves."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from parts import make_actor
from torch import Tensor
from worker import Rank

from megarl.config.schema import OptimizerConfig
from megarl.layout.memory import TrainedWith, gathered_bytes
from megarl.mesh.layout import MeshLayout, megatron_slice
from megarl.models.dist_checkpoint import save_role
from megarl.models.micro_batch import MicroBatch, build_micro_batch
from megarl.models.offload import gradient_tensors, optimizer_tensors


def small_steps(
    rank: Rank, path: str, layout: MeshLayout, steps: int, optimizer: OptimizerConfig
) -> tuple[dict[str, Tensor], dict[str, Tensor], list[float]]:
    """bf16 weights before and after, by the planner's names, and the rate of each step."""
    actor = make_actor(rank, path, layout, dtype="bfloat16", optimizer=optimizer)
    before = {name: p.detach().clone() for name, p in actor.engine.parameters().items()}
    micro = _micro_batches(rank, layout)
    rates = []
    for _ in range(steps):
        _, step = actor.engine.train_step(micro, _loss, lambda reports: None)
        rates.append(step.lr)
    after = {name: p.detach().clone() for name, p in actor.engine.parameters().items()}
    return before, after, rates


@dataclass(frozen=True)
class OffloadFacts:
    """What one rank saw of steps with the memory away between them."""

    tensors: dict[str, Tensor]
    """Weights, main weights and Adam's states at the end."""
    freed: list[int]
    """Bytes given back before the first step and after each."""
    left_empty: list[bool]
    """Whether each time all that was named had no memory."""
    parameters_stay: bool
    elements: int
    """Of the model on this rank."""


def offloaded_steps(
    rank: Rank,
    path: str,
    layout: MeshLayout,
    dtype: str,
    steps: int,
    optimizer: OptimizerConfig,
) -> OffloadFacts:
    """Steps with `offload` before, between and after; the end state, read once it is back."""
    actor = make_actor(rank, path, layout, dtype=dtype, optimizer=optimizer)
    engine, trainer = actor.engine, actor.engine.trainer
    parameters = list(engine.parameters().values())
    micro = _micro_batches(rank, layout)
    freed, empty, stay = [], [], True
    for index in range(steps + 1):
        if index:
            engine.train_step(micro, _loss, lambda reports: None)
        weights = [p.detach().clone() for p in parameters]
        freed.append(trainer.offload())
        named = [*gradient_tensors(trainer.chunks), *_large_states(trainer, parameters)]
        empty.append(all(t.untyped_storage().nbytes() == 0 for t in named))
        stay = stay and all(map(torch.equal, parameters, weights))
    trainer.onload()
    tensors = {f"p{i}": p.detach().clone() for i, p in enumerate(parameters)}
    states = _large_states(trainer, parameters)
    tensors |= {f"s{i}": s.detach().clone() for i, s in enumerate(states)}
    grads = gradient_tensors(trainer.chunks)
    tensors |= {f"g{i}": g.detach().clone() for i, g in enumerate(grads)}
    count = sum(p.numel() for p in parameters)
    return OffloadFacts(tensors, freed, empty, stay, count)


def away_after_a_save(
    rank: Rank, path: str, optimizer: OptimizerConfig, folder: str
) -> tuple[bool, bool]:
    """Whether Adam's states and gradients, both away before it, are so after a save."""
    actor = make_actor(rank, path, MeshLayout(), optimizer=optimizer)
    engine, trainer = actor.engine, actor.engine.trainer
    engine.train_step(_micro_batches(rank, MeshLayout()), _loss, lambda reports: None)
    trainer.offload()
    Path(folder).mkdir()
    save_role(engine, Path(folder)).finish()
    parameters = list(engine.parameters().values())
    each = _large_states(trainer, parameters), list(gradient_tensors(trainer.chunks))
    states, gradients = ([t.untyped_storage().nbytes() == 0 for t in found] for found in each)
    assert states and gradients
    return any(states), all(gradients)


@dataclass(frozen=True)
class BucketFacts:
    """Of one rank's gradients."""

    limits: list[int | None]
    """Elements at which each chunk closes a bucket; None: never."""
    largest: int
    """Elements of the largest bucket, padding included."""
    by_formula: int
    """The bytes that the memory estimate says a save gathers."""


def buckets(
    rank: Rank, path: str, layout: MeshLayout, optimizer: OptimizerConfig, how: TrainedWith
) -> BucketFacts:
    """What Megatron's DDP cut the gradients into, beside the estimate."""
    engine = make_actor(rank, path, layout, dtype="bfloat16", optimizer=optimizer).engine
    chunks = engine.trainer.chunks
    sizes = [
        bucket.grad_data.numel()
        for chunk in chunks
        for buffer in (*chunk.buffers, *chunk.expert_parallel_buffers)
        for bucket in buffer.buckets
    ]
    at = megatron_slice(layout, engine.mesh.rank)
    limits = [chunk.bucket_size for chunk in chunks]
    return BucketFacts(limits, max(sizes), gathered_bytes(engine.shape, at, how))


def _large_states(trainer: Any, parameters: list[Tensor]) -> list[Tensor]:
    found = optimizer_tensors(trainer.optimizer, parameters)
    return [tensor for tensor in found if tensor.numel() > 1]


def _loss(output: Any, batch: MicroBatch) -> tuple[Tensor, dict[str, Tensor]]:
    value = -output[0].sum() / 32
    return value, {"loss": value.detach().clone()}


def _micro_batches(rank: Rank, layout: MeshLayout) -> list[MicroBatch]:
    tokens = torch.randint(2, 70, (4, 12), generator=torch.Generator().manual_seed(1))
    lengths = torch.full((4,), 4), torch.full((4,), 8)
    own = rank.rank * (4 // layout.dp)
    rows = range(own, own + 4 // layout.dp)
    return [build_micro_batch(tokens, *lengths, [row], 8) for row in rows]

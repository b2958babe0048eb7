"""Jobs of tests/models/test_optimizer.py: small steps in bf16, and rates that change."""

from __future__ import annotations

from typing import Any

import torch
from parts import make_actor
from torch import Tensor
from worker import Rank

from megarl.config.schema import OptimizerConfig
from megarl.mesh.layout import MeshLayout
from megarl.models.micro_batch import MicroBatch, build_micro_batch


def small_steps(
    rank: Rank, path: str, layout: MeshLayout, steps: int, optimizer: OptimizerConfig
) -> tuple[dict[str, Tensor], dict[str, Tensor], list[float]]:
    """bf16 weights before and after, by the planner's names, and the rate of each step."""
    actor = make_actor(rank, path, layout, dtype="bfloat16", optimizer=optimizer)
    before = {name: p.detach().clone() for name, p in actor.engine.parameters().items()}
    tokens = torch.randint(2, 70, (4, 12), generator=torch.Generator().manual_seed(1))
    lengths = torch.full((4,), 4), torch.full((4,), 8)
    own = rank.rank * (4 // layout.dp)
    rows = range(own, own + 4 // layout.dp)
    micro = [build_micro_batch(tokens, *lengths, [row], 8) for row in rows]

    def loss(output: Any, batch: MicroBatch) -> tuple[Tensor, dict[str, Tensor]]:
        value = -output[0].sum() / 32
        return value, {"loss": value.detach().clone()}

    rates = []
    for _ in range(steps):
        _, step = actor.engine.train_step(micro, loss, lambda reports: None)
        rates.append(step.lr)
    after = {name: p.detach().clone() for name, p in actor.engine.parameters().items()}
    return before, after, rates

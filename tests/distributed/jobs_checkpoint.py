"""Jobs of tests/checkpoint: a role trains, is saved, loaded elsewhere, and goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from gather_reference import full_weights
from parts import make_actor
from tiny_models import VOCAB_SIZE
from torch import Tensor
from worker import Rank

from megarl.config.schema import OptimizerConfig
from megarl.mesh.layout import MeshLayout
from megarl.models.dist_checkpoint import load_role, save_role
from megarl.models.micro_batch import MicroBatch, build_micro_batch


def train_and_save(
    rank: Rank,
    path: str,
    hf: dict[str, Any],
    layout: MeshLayout,
    dtype: str,
    optimizer: OptimizerConfig,
    folder: str,
    before: int,
    after: int,
) -> list[dict[str, Tensor]]:
    """Full weights when it is saved, and after each of `after` more steps."""
    actor = make_actor(rank, path, layout, dtype=dtype, optimizer=optimizer)
    for _ in range(before):
        actor.engine.train_step(*_step_inputs(layout, actor), lambda reports: None)
    if rank.rank == 0:
        Path(folder).mkdir()
    rank.universe.barrier()
    actor.offload()
    save_role(actor.engine, Path(folder))
    return _go_on(rank, actor, layout, hf, after)


def load_and_train(
    rank: Rank,
    path: str,
    hf: dict[str, Any],
    layout: MeshLayout,
    dtype: str,
    optimizer: OptimizerConfig,
    folder: str,
    after: int,
) -> list[dict[str, Tensor]]:
    """The same from a checkpoint, possibly on another layout."""
    actor = make_actor(rank, path, layout, dtype=dtype, optimizer=optimizer)
    for parameter in actor.engine.parameters().values():
        parameter.data.fill_(float("nan"))
    actor.offload()
    load_role(actor.engine, Path(folder))
    return _go_on(rank, actor, layout, hf, after)


def _step_inputs(layout: MeshLayout, actor: Any) -> tuple[list[MicroBatch], Any]:
    """Twelve sequences, the same for every layout, dealt to the slices; the mean over all."""
    tokens = torch.randint(2, VOCAB_SIZE, (12, 12), generator=torch.Generator().manual_seed(3))
    lengths = torch.full((12,), 4), torch.full((12,), 8)
    share = 12 // layout.dp
    rows = range(actor._mesh.at.dp * share, (actor._mesh.at.dp + 1) * share)
    micro = [build_micro_batch(tokens, *lengths, [row], 8) for row in rows]

    def loss(output: Any, batch: MicroBatch) -> tuple[Tensor, dict[str, Tensor]]:
        value = -output[0].sum() / 96
        return value, {"loss": value.detach().clone()}

    return micro, loss


def _go_on(
    rank: Rank, actor: Any, layout: MeshLayout, hf: dict[str, Any], steps: int
) -> list[dict[str, Tensor]]:
    found = [_full(rank, actor, layout, hf)]
    for _ in range(steps):
        actor.engine.train_step(*_step_inputs(layout, actor), lambda reports: None)
        found.append(_full(rank, actor, layout, hf))
    return found


def _full(rank: Rank, actor: Any, layout: MeshLayout, hf: dict[str, Any]) -> dict[str, Tensor]:
    live = {name: p.detach().clone() for name, p in actor.engine.parameters().items()}
    return full_weights(rank.universe.all_gather(live), layout, hf)


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Bit for bit."""
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)

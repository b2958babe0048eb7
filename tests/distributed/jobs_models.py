"""Jobs of tests/models: score and export a model on a mesh."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from parts import RoleSpec, make_actor, role_plan
from tiny_models import VOCAB_SIZE
from torch import Tensor
from worker import Rank

from megarl.mesh.layout import MeshLayout
from megarl.models.micro_batch import MicroBatch
from megarl.roles.export import export_hf


def every_logprob(rank: Rank, paths: dict[str, str], layout: MeshLayout, tokens: Tensor) -> Any:
    """family -> fp32 [b, s, V] log-probs of every token at every position; on last stages."""
    return {name: _every_logprob(rank, path, layout, tokens) for name, path in paths.items()}


def _every_logprob(rank: Rank, path: str, layout: MeshLayout, tokens: Tensor) -> Tensor | None:
    actor = make_actor(rank, path, layout)
    b, s = tokens.shape
    row = torch.arange(b).repeat_interleave(s * VOCAB_SIZE)
    column = torch.arange(s).repeat_interleave(VOCAB_SIZE).repeat(b)
    target = torch.arange(VOCAB_SIZE).repeat(b * s)
    micro = MicroBatch(tokens, column * b + row, target, torch.zeros_like(target))

    def report(output: Any, batch: MicroBatch) -> tuple[Tensor, dict[str, Tensor]]:
        return output[0].sum(), {"all": output[0].detach().clone()}

    # Three micro-batches per stage: the last one answers.
    reports = actor.engine.forward([micro] * (3 * layout.pp), report)
    return reports[-1]["all"].view(b, s, VOCAB_SIZE) if reports else None


def export(
    rank: Rank,
    path: str,
    layout: MeshLayout,
    dtype: str,
    target: str,
    max_shard_bytes: int,
) -> None:
    """Load a folder and write it again."""
    actor = make_actor(rank, path, layout, dtype=dtype)
    plan = role_plan(path, RoleSpec(tuple(range(rank.universe.size)), layout))
    export_hf(
        rank.universe, actor, plan.shape, getattr(torch, dtype), target, path, max_shard_bytes
    )
    assert Path(target).is_dir()

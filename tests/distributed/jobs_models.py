"""Jobs of tests/models: score and export a model on a mesh."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest import mock

import torch
from parts import RoleSpec, make_actor, role_plan
from tiny_models import VOCAB_SIZE
from torch import Tensor
from worker import Rank

from megarl.mesh.layout import MeshLayout
from megarl.models import logprob
from megarl.models.micro_batch import MicroBatch
from megarl.roles.export import export_hf


def every_logit(rank: Rank, paths: dict[str, str], layout: MeshLayout, tokens: Tensor) -> Any:
    """family -> fp32 [b, s, V] logits, and log-probs of every token, on last stages; else None."""
    return {name: _every_logit(rank, path, layout, tokens) for name, path in paths.items()}


def _every_logit(
    rank: Rank, path: str, layout: MeshLayout, tokens: Tensor
) -> tuple[Tensor, Tensor] | None:
    actor = make_actor(rank, path, layout)
    b, s = tokens.shape
    row = torch.arange(b).repeat_interleave(s * VOCAB_SIZE)
    column = torch.arange(s).repeat_interleave(VOCAB_SIZE).repeat(b)
    target = torch.arange(VOCAB_SIZE).repeat(b * s)
    micro = MicroBatch(tokens, column * b + row, target, torch.zeros_like(target))

    def report(output: Any, batch: MicroBatch) -> tuple[Tensor, dict[str, Tensor]]:
        return output[0].sum(), {"all": output[0].detach().clone()}

    # Three micro-batches per stage: the last one answers.
    seen: list[Tensor] = []
    make = logprob._chunk_logits

    def kept(*arguments: Any) -> Tensor:
        seen.append(make(*arguments).clone())
        return seen[-1].clone()

    with mock.patch.object(logprob, "_chunk_logits", kept):
        reports = actor.engine.forward([micro] * (3 * layout.pp), report)
    shards = rank.universe.all_gather(torch.cat(seen)[-len(target) :: VOCAB_SIZE] if seen else None)
    if not reports:
        return None
    logits = torch.cat([shard for shard in shards if shard is not None], dim=1)[:, :VOCAB_SIZE]
    return logits.view(b, s, VOCAB_SIZE), reports[-1]["all"].view(b, s, VOCAB_SIZE)


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

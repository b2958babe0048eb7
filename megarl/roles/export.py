"""Writes a role's model as a Hugging Face folder, by the same planner as the weight sync.

The writer receives one file's tensors at a time, box by box from whoever holds them: its memory is
one shard, whatever the model's size.
"""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path

import torch

from megarl import native
from megarl.layout import ModelShape, file_placement, hf_tensors
from megarl.mesh.universe import Universe
from megarl.models.engine import layernorm_names
from megarl.reshard.executor import Resharder
from megarl.reshard.placements import actor_placements
from megarl.roles.megatron_role import MegatronRole
from megarl.runtime.device import device
from megarl.weights.folder import head_keys, new_folder, shard_tensors

MAX_SHARD_BYTES = 4 << 30
BUFFER_BYTES = 256 << 20


def export_hf(
    universe: Universe,
    role: MegatronRole,
    shape: ModelShape,
    dtype: torch.dtype,
    folder: str | Path,
    template: str | Path,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Write the role's weights to `folder`; config and tokenizer come from `template`.

    All ranks call it together; the first rank of the role's pool writes. A model with a scalar head
    is written as a ...ForSequenceClassification with one label. The folder appears under
    its name when it is whole.
    """
    writer_rank = role.pool.ranks[0]
    sources = actor_placements(
        shape, role.layout, role.pool.ranks, layernorm_names(), padded_vocab=False
    )
    live = role.engine.parameters() if role.here else {}
    whole = file_placement(shape)
    shards = list(shard_tensors(hf_tensors(shape), dtype.itemsize, max_shard_bytes))
    writing = universe.rank == writer_rank
    opened = new_folder(Path(folder), Path(template), len(shards)) if writing else nullcontext()
    with opened as writer:
        for shard in shards:
            wanted = tuple(piece for piece in whole if piece.tensor in shard)
            plan = native.plan(sources, {writer_rank: wanted}, rank=universe.rank)
            names = shard.items() if writing else ()
            buffers = {
                name: torch.empty(size, dtype=dtype, device=device()) for name, size in names
            }
            Resharder(
                universe, plan, live, buffers, wire_dtype=dtype, buffer_bytes=BUFFER_BYTES
            ).run(verify=True)
            if writer is not None:
                writer.write({name: tensor.cpu() for name, tensor in buffers.items()})
        if writer is not None:
            hf = json.loads((Path(template) / "config.json").read_text())
            writer.finish(dtype, **head_keys(shape, hf))
    universe.barrier()

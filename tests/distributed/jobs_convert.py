"""Jobs of tests/convert: real Megatron-Core models that save and load torch_dist checkpoints."""

from __future__ import annotations

import queue
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.mapping import ShardedObject, ShardedTensorFactory
from megatron.core.dist_checkpointing.strategies import filesystem_async
from worker import Rank

from megarl.layout import megatron_placement
from megarl.mesh.layout import MeshLayout, megatron_slice
from megarl.mesh.role_mesh import GroupFactory, RoleMesh
from megarl.models.dist_checkpoint import load_role
from megarl.models.engine import MegatronEngine, layernorm_names
from megarl.validate.models import read_model
from megarl.weights.load import load_weights
from megarl.weights.source import SafetensorsFolder


def engine_of(path: str, layout: MeshLayout, dtype: torch.dtype = torch.float32) -> MegatronEngine:
    """A model with a Hugging Face folder's weights, straight from its files."""
    hf, shape = read_model(path, "model.path")
    mesh = RoleMesh("actor", layout, GroupFactory(60.0))
    engine = MegatronEngine(hf, shape, mesh, dtype)
    slice_ = megatron_slice(layout, mesh.rank, layernorm_names())
    placement = megatron_placement(shape, slice_, padded_vocab=False)
    load_weights(SafetensorsFolder(path), placement, engine.parameters())
    return engine


def load(rank: Rank, cases: dict[str, str], layout: MeshLayout, dtype: torch.dtype) -> list[str]:
    """Hugging Face folder -> checkpoint: the parameters that the checkpoint gives other bytes."""
    different = []
    for path, checkpoint in cases.items():
        engine = engine_of(path, layout, dtype)
        expected = {name: value.detach().clone() for name, value in engine.parameters().items()}
        for value in engine.parameters().values():
            value.detach().fill_(7)
        load_role(engine, Path(checkpoint))
        different += [
            f"{path} {name} on rank {rank.rank}"
            for name, value in engine.parameters().items()
            if not torch.equal(value.detach().view(torch.uint8), expected[name].view(torch.uint8))
        ]
    return different


def save(rank: Rank, cases: dict[str, str], layout: MeshLayout, options: dict[str, bool]) -> None:
    """Hugging Face folder -> where Megatron-Core saves its weights; options: its `metadata`."""
    # Saved in this process: Megatron's own queue would start a process for each rank.
    with mock.patch.object(filesystem_async, "_results_queue", queue.Queue()):
        for path, checkpoint in cases.items():
            engine = engine_of(path, layout)
            if rank.rank == 0:
                Path(checkpoint).mkdir(parents=True)
            rank.universe.barrier()
            with engine.mesh.activate():
                state: dict[str, Any] = _sharded(engine, options)
                dist_checkpointing.save(state | {"iteration": 3}, checkpoint)


def _sharded(engine: MegatronEngine, options: dict[str, bool]) -> dict[str, Any]:
    metadata = {"dp_cp_group": engine.mesh.groups.dp_cp} | options
    return {
        f"model{index}": chunk.sharded_state_dict(metadata=metadata)
        for index, chunk in enumerate(engine.chunks)
    }


def keys(rank: Rank, paths: dict[str, str]) -> dict[str, dict[str, list[int]]]:
    """name -> key -> global shape (objects: []), as GPTModel.sharded_state_dict has them."""
    found: dict[str, dict[str, list[int]]] = {}
    for name, path in paths.items():
        engine = engine_of(path, MeshLayout())
        with engine.mesh.activate():
            state = _sharded(engine, {})["model0"]
        found[name] = {}
        for value in state.values():
            if isinstance(value, ShardedObject):
                found[name][value.unique_key] = []
                continue
            built = value.build() if isinstance(value, ShardedTensorFactory) else [value]
            found[name] |= {one.key: list(one.global_shape) for one in built}
    return found

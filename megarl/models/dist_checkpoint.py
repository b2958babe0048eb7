"""One role's weights, Adam states and schedule, as Megatron's torch_dist folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.serialization import load_content_metadata
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException

from megarl.errors import ConfigError, DataError
from megarl.models.engine import MegatronEngine
from megarl.models.role_save import RoleSave

SHARDING = "fully_reshardable"
"""Of the distributed optimizer's states: the one form that any other layout can load."""


def save_role(engine: MegatronEngine, folder: Path, *, copies: bool = False) -> RoleSave:
    """Begin to write the role to an empty folder; all ranks of its pool call it together.

    It is whole after `RoleSave.finish`. copies: see RoleSave.
    """
    with engine.mesh.activate():
        state = _state(engine, loading=False)
    return RoleSave(engine, state, folder, _metadata(engine), copies=copies)


def load_role(engine: MegatronEngine, folder: Path) -> None:
    """Read weights and, where the role is trained, optimizer and schedule, under any layout.

    All ranks of its pool call it together. Raises DataError, naming the folder, for one that is
    not whole or belongs to another model; ConfigError where experts were dealt otherwise.
    """
    with engine.mesh.activate():
        try:
            if engine.trainer is not None:
                _check_experts(engine, folder)
            _load(engine, folder)
        except ConfigError:
            raise
        # Readers of Megatron, torch and pickle fail each in ways of its own; torch's
        # CheckpointException is no Exception by its own wish.
        except (Exception, CheckpointException) as error:
            cause = f"{type(error).__name__}: {error}"
            raise DataError(f"checkpoint {folder} cannot be read: {cause}") from error


def _load(engine: MegatronEngine, folder: Path) -> None:
    state = dist_checkpointing.load(_state(engine, loading=True), str(folder))
    for index, chunk in enumerate(engine.chunks):
        chunk.load_state_dict(state[f"model{index}"])
    if engine.trainer is not None:
        optimizer = engine.trainer.optimizer
        for each in _each(optimizer):
            _leave_steps_alone(each)
        optimizer.load_state_dict(state["optimizer"])
        engine.trainer.schedule.num_steps = 0  # Megatron adds to it, and this may be a second load
        engine.trainer.schedule.load_state_dict(state["schedule"])
        _part_steps(optimizer)


def _check_experts(engine: MegatronEngine, folder: Path) -> None:
    """Megatron-Core cannot deal optimizer states of experts anew."""
    here, saved = _experts(engine), load_content_metadata(str(folder))
    if saved is None or not engine.shape.num_experts:
        return
    for key, value in here.items():
        if saved.get(key, value) != value:
            raise ConfigError(
                f"checkpoint {folder} was saved with {key} {saved[key]} and the mesh has {value}: "
                "optimizer states of experts stay on the mesh that they were made on; keep it, or "
                "start anew from the weights alone (`megarl convert megatron-to-hf` makes a model "
                "folder of them, which any mesh reads)"
            )


def _experts(engine: MegatronEngine) -> dict[str, int]:
    layout = engine.mesh.layout
    return {
        "expert_model_parallel_size": layout.ep,
        "expert_tensor_parallel_size": layout.etp,
    }


def _state(engine: MegatronEngine, *, loading: bool) -> dict[str, Any]:
    if engine.trainer is not None:
        engine.trainer.onload_states()  # what is away has no memory to read or write
    metadata = _metadata(engine)
    chunks: list[Any] = engine.chunks  # of Megatron's own classes
    state: dict[str, Any] = {
        f"model{index}": chunk.sharded_state_dict(metadata=metadata)
        for index, chunk in enumerate(chunks)
    }
    if engine.trainer is not None:
        optimizer = engine.trainer.optimizer
        if loading:
            _make_states(optimizer)
        state["optimizer"] = optimizer.sharded_state_dict(
            state if len(engine.chunks) > 1 else state["model0"], loading, metadata=metadata
        )
        state["schedule"] = engine.trainer.schedule.state_dict()
    return state


def _metadata(engine: MegatronEngine) -> dict[str, Any]:
    return {
        "distrib_optim_sharding_type": SHARDING,
        "chained_optim_avoid_prefix": True,
        "singleton_local_shards": False,
        "dp_cp_group": engine.mesh.groups.dp_cp,
        **_experts(engine),
    }


def _each(optimizer: Any) -> list[Any]:
    return list(getattr(optimizer, "chained_optimizers", [optimizer]))


def _make_states(optimizer: Any) -> None:
    """torch's Adam has no `step` before its first: a load would leave it out."""
    for each in _each(optimizer):
        if hasattr(each, "_init_optimizer_states_with_dummy_values"):
            each._init_optimizer_states_with_dummy_values()


def _leave_steps_alone(optimizer: Any) -> None:
    """Megatron copies each state of a parameter from the checkpoint; torch's step is not in it."""
    name = "load_parameter_state_from_fully_reshardable"
    original = getattr(type(optimizer), name, None)
    if original is None:
        return

    def load(param_state: Any) -> None:
        inner = optimizer.optimizer.state
        steps = {p: state.pop("step") for p, state in inner.items() if "step" in state}
        original(optimizer, param_state)
        for parameter, step in steps.items():
            inner[parameter]["step"] = step

    setattr(optimizer, name, load)


def _part_steps(optimizer: Any) -> None:
    """After a load all states share one step tensor, which each parameter's step would advance."""
    for each in _each(optimizer):
        for state in each.optimizer.state.values() if each.optimizer is not None else ():
            if isinstance(state.get("step"), Tensor):
                state["step"] = torch.clone(state["step"])

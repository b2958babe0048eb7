"""Jobs of tests/checkpoint: a role trains, is saved, loaded elsewhere, and goes on."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from gather_reference import full_weights
from megatron.core.dist_checkpointing.strategies.filesystem_async import FileSystemWriterAsync
from parts import make_actor
from tiny_models import VOCAB_SIZE
from torch import Tensor
from worker import Rank

from megarl.config.schema import OptimizerConfig
from megarl.errors import MegaRLError
from megarl.mesh.layout import MeshLayout
from megarl.models import role_save
from megarl.models.dist_checkpoint import load_role, save_role
from megarl.models.micro_batch import MicroBatch, build_micro_batch


@dataclass(frozen=True)
class RoleCase:
    """A role, and where its checkpoint lies."""

    path: str
    hf: dict[str, Any]
    layout: MeshLayout
    dtype: str
    optimizer: OptimizerConfig
    folder: str


def train_and_save(rank: Rank, case: RoleCase, before: int, after: int) -> list[dict[str, Tensor]]:
    """Full weights when it is saved, and after each of `after` more steps."""
    actor = _actor(rank, case)
    for _ in range(before):
        actor.engine.train_step(*_step_inputs(case.layout, actor), lambda reports: None)
    if rank.rank == 0:
        Path(case.folder).mkdir()
    rank.universe.barrier()
    actor.offload()
    save_role(actor.engine, Path(case.folder)).finish()
    return _go_on(rank, actor, case, after)


def train_on_while_it_is_written(rank: Rank, case: RoleCase) -> dict[str, Tensor]:
    """Full weights when the save begins; an optimizer step comes before any file is written."""
    actor = _actor(rank, case)
    actor.engine.train_step(*_step_inputs(case.layout, actor), lambda reports: None)
    if rank.rank == 0:
        Path(case.folder).mkdir()
    rank.universe.barrier()
    write = role_save._write_files
    begin = threading.Event()

    def late(*arguments: Any) -> Any:
        begin.wait()
        return write(*arguments)

    role_save._write_files = late
    before = _full(rank, actor, case.layout, case.hf)
    save = save_role(actor.engine, Path(case.folder), copies=True)
    assert not save.is_written
    actor.engine.train_step(*_step_inputs(case.layout, actor), lambda reports: None)
    assert not equal(before, _full(rank, actor, case.layout, case.hf))
    begin.set()
    save.finish()
    role_save._write_files = write
    return before


def refusal(rank: Rank, case: RoleCase) -> str:
    """What a load says."""
    actor = _actor(rank, case)
    try:
        load_role(actor.engine, Path(case.folder))
    except MegaRLError as error:
        return f"{type(error).__name__}: {error}"
    return "loaded"


def failing_save(rank: Rank, case: RoleCase) -> str:
    """What a save says whose files cannot be written on rank 1."""
    actor = _actor(rank, case)
    if rank.rank == 0:
        Path(case.folder).mkdir()
    rank.universe.barrier()
    write = FileSystemWriterAsync.write_preloaded_data

    def full(transforms: Any, index: int, bucket: Any, results: Any, *rest: Any) -> None:
        results.put((index, OSError(28, "No space left on device")))

    if rank.rank == 1:
        FileSystemWriterAsync.write_preloaded_data = staticmethod(full)
    try:
        save_role(actor.engine, Path(case.folder)).finish()
    except MegaRLError as error:
        return str(error)
    finally:
        FileSystemWriterAsync.write_preloaded_data = staticmethod(write)
    return "saved"


def load_and_train(rank: Rank, case: RoleCase, after: int) -> list[dict[str, Tensor]]:
    """The same from a checkpoint, possibly on another layout."""
    actor = _actor(rank, case)
    for parameter in actor.engine.parameters().values():
        parameter.data.fill_(float("nan"))
    actor.offload()
    load_role(actor.engine, Path(case.folder))
    return _go_on(rank, actor, case, after)


def load_and_save(rank: Rank, case: RoleCase, target: str) -> None:
    """From one checkpoint to another, possibly on another layout."""
    actor = _actor(rank, case)
    load_role(actor.engine, Path(case.folder))
    if rank.rank == 0:
        Path(target).mkdir()
    rank.universe.barrier()
    save_role(actor.engine, Path(target)).finish()


def _actor(rank: Rank, case: RoleCase) -> Any:
    return make_actor(rank, case.path, case.layout, dtype=case.dtype, optimizer=case.optimizer)


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


def _go_on(rank: Rank, actor: Any, case: RoleCase, steps: int) -> list[dict[str, Tensor]]:
    found = [_full(rank, actor, case.layout, case.hf)]
    for _ in range(steps):
        actor.engine.train_step(*_step_inputs(case.layout, actor), lambda reports: None)
        found.append(_full(rank, actor, case.layout, case.hf))
    return found


def _full(rank: Rank, actor: Any, layout: MeshLayout, hf: dict[str, Any]) -> dict[str, Tensor]:
    live = {name: p.detach().clone() for name, p in actor.engine.parameters().items()}
    return full_weights(rank.universe.all_gather(live), layout, hf)


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Bit for bit."""
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)

"""What actor, critic and reference share: a Megatron engine that scores and trains rows.

A role object exists on every rank of the universe; its verbs do their work on the ranks of its
pool and return at once elsewhere. Tokens exist on owners only, until `take_rows` hands them to the
rest of the owner's slice.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from megarl.errors import RunError
from megarl.mesh.layout import MeshLayout
from megarl.mesh.role_mesh import RoleMesh
from megarl.mesh.universe import Pool, Universe
from megarl.models.engine import MegatronEngine
from megarl.models.micro_batch import LossInputs, MicroBatch, build_micro_batch
from megarl.models.optimizer import StepResult
from megarl.models.schedule import Loss
from megarl.roles.batching import MicroBatchLimit
from megarl.roles.step_rows import RoleRows, StepRows, deal


@dataclass
class RoleBatch:
    """The rows that this rank's slice works on; response tensors are [n, R], fp32."""

    dealt: RoleRows
    index: dict[int, int]
    """Global row -> local row."""
    tokens: Tensor
    """int64 [n, S]."""
    prompt_length: Tensor
    response_length: Tensor
    learned: Tensor | None = None
    """bool [n, R]: response tokens that are learned; None: all."""

    @property
    def width(self) -> int:
        """R."""
        return self.dealt.rows.width

    @property
    def mask(self) -> Tensor:
        """bool [n, R], True on response tokens that are learned."""
        within = torch.arange(self.width)[None, :] < self.response_length[:, None]
        return within if self.learned is None else within & self.learned

    @property
    def all_rows(self) -> range:
        """The rows of the step, on all slices."""
        return range(len(self.dealt.slices))

    def from_rows(self, values: Mapping[int, Tensor]) -> Tensor:
        """fp32 [n, R] from one 1-D tensor per row."""
        out = torch.zeros(len(self.index), self.width)
        for row, index in self.index.items():
            out[index, : values[row].numel()] = values[row]
        return out

    def to_rows(self, values: Tensor) -> dict[int, Tensor]:
        """Row -> its 1-D numbers, from [n, R]."""
        return {
            row: values[index, : int(self.response_length[index])].contiguous()
            for row, index in self.index.items()
        }


class MegatronRole:
    """One role with a Megatron model."""

    def __init__(
        self,
        name: str,
        universe: Universe,
        pool: Pool,
        layout: MeshLayout,
        limit: MicroBatchLimit,
        mesh: RoleMesh | None,
        engine: MegatronEngine | None,
    ) -> None:
        self.name, self.pool, self.layout = name, pool, layout
        self._universe, self._limit = universe, limit
        self._mesh, self._engine = mesh, engine

    @property
    def here(self) -> bool:
        """Whether this rank holds a part of the role."""
        return self._engine is not None

    @property
    def engine(self) -> MegatronEngine:
        """The engine; only where `here`."""
        assert self._engine is not None
        return self._engine

    @property
    def is_owner(self) -> bool:
        """Whether this rank owns rows of the role."""
        return self._mesh is not None and self._mesh.is_owner

    def deal(self, rows: StepRows) -> RoleRows:
        """Who owns which of the step's rows; equal on all ranks."""
        return deal(rows, self.layout, self.pool)

    def take_rows(self, dealt: RoleRows, tokens: Mapping[int, Tensor]) -> RoleBatch | None:
        """Hand the owner's token rows to its slice; None on ranks without the role.

        tokens: row -> int64 [prompt + response], on owners.
        """
        if self._mesh is None:
            return None
        rows = dealt.map.rows_of(self.pool.ranks[self._mesh.owner_rank])
        lengths = [dealt.rows.length[row] for row in rows]
        block = torch.zeros(len(rows), max(lengths, default=1), dtype=torch.int64)
        if self.is_owner:
            for index, row in enumerate(rows):
                block[index, : lengths[index]] = tokens[row]
        self.broadcast(block)
        return RoleBatch(
            dealt,
            {row: index for index, row in enumerate(rows)},
            block,
            torch.tensor([dealt.rows.prompt_length[row] for row in rows], dtype=torch.int64),
            torch.tensor([dealt.rows.response_length[row] for row in rows], dtype=torch.int64),
        )

    def broadcast(self, tensor: Tensor) -> Tensor:
        """A CPU tensor of the owner, to all ranks of its slice, in place."""
        assert self._mesh is not None and self._mesh.slice_group is not None
        if self._mesh.slice_group.size() > 1 and tensor.numel():
            dist.broadcast(tensor, src=self._mesh.owner_rank, group=self._mesh.slice_group)
        return tensor

    def offload(self) -> None:
        """Give back memory that only an update needs; the next one takes it again."""
        if self._engine is not None:
            self._engine.offload()

    def score(self, batch: RoleBatch | None, loss: Loss, key: str, **options: Any) -> Tensor | None:
        """Forward all rows; fp32 [n, R] of what the loss reports as `key`, on owners only."""
        if batch is None:
            return None
        micro = self._build(batch, batch.all_rows, None)
        reports = self.engine.forward(micro, loss, **options)
        if not self.is_owner:
            return None
        flat = torch.zeros(len(batch.index) * batch.width)
        for one, report in zip(micro, reports, strict=True):
            flat[one.slot] = report[key].float().cpu()
        return flat.view(len(batch.index), batch.width)

    def train_on(
        self, batch: RoleBatch, rows: Sequence[int], inputs: LossInputs, loss: Loss, **options: Any
    ) -> tuple[list[tuple[MicroBatch, dict[str, Tensor]]], StepResult]:
        """One optimizer step on the rows of one mini-batch.

        inputs: flat [n x R] tensors. Raises RunError, with rows, for a loss or gradient that is
        not finite. Returns the micro-batches with their reports (on the last stage), and the step.
        """
        micro = self._build(batch, rows, inputs)

        def rows_of(one: MicroBatch) -> set[int]:
            return set((one.slot // batch.width).tolist())

        return self.train_micro_batches(batch, micro, rows_of, rows, loss, **options)

    def train_micro_batches(
        self,
        batch: RoleBatch,
        micro: Sequence[MicroBatch],
        rows_of: Callable[[MicroBatch], set[int]],
        rows: Sequence[int],
        loss: Loss,
        **options: Any,
    ) -> tuple[list[tuple[MicroBatch, dict[str, Tensor]]], StepResult]:
        """The step of `train_on` for micro-batches that are made; rows_of: local rows of one."""

        def check(reports: list[dict[str, Tensor]]) -> None:
            for one, report in zip(micro, reports, strict=bool(reports)):
                value = float(report["loss"])
                if not math.isfinite(value):
                    local = rows_of(one)
                    named = [row for row, index in batch.index.items() if index in local]
                    raise RunError(
                        f"{self.name}, rank {self._universe.rank}: the loss is {value} on samples "
                        f"{named}; lower the learning rate, or look at these samples"
                    )

        reports, step = self.engine.train_step(micro, loss, check, **options)
        if not math.isfinite(step.grad_norm):
            raise RunError(f"{self.name}: the gradient norm is {step.grad_norm}; rows {list(rows)}")
        return list(zip(micro, reports, strict=False)), step

    def cut(self, batch: RoleBatch, rows: Sequence[int]) -> list[list[int]]:
        """Local rows of each micro-batch of this slice, for the given rows of the step."""
        assert self._mesh is not None
        cut = batch.dealt.micro_batches(rows, self._mesh.at.dp, self._limit)
        return [[batch.index[row] for row in micro] for micro in cut]

    @property
    def pad_to_multiple(self) -> int:
        """Micro-batches are padded to a multiple of this."""
        return self.layout.tp if self.layout.sequence_parallel else 1

    def _build(
        self, batch: RoleBatch, rows: Sequence[int], inputs: LossInputs | None
    ) -> list[MicroBatch]:
        return [
            build_micro_batch(
                batch.tokens,
                batch.prompt_length,
                batch.response_length,
                micro,
                batch.width,
                inputs,
                self.pad_to_multiple,
                packing=self._limit.packing,
                learned=batch.learned,
            )
            for micro in self.cut(batch, rows)
        ]

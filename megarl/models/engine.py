"""One role's Megatron engine: its chunks, their parameters by name, forward and optimizer step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from megarl.config.schema import OptimizerConfig
from megarl.errors import PlanError
from megarl.layout import ModelShape, megatron_parameters
from megarl.layout.megatron_side import LayerNorm
from megarl.mesh.layout import megatron_slice
from megarl.mesh.role_mesh import RoleMesh
from megarl.models.gpt import build_chunks
from megarl.models.layer_spec import uses_transformer_engine
from megarl.models.micro_batch import MicroBatch
from megarl.models.optimizer import StepResult, Trainer
from megarl.models.schedule import Loss, run_schedule


def layernorm_names() -> LayerNorm:
    """Whose names the norms carry in this process's models."""
    return "te" if uses_transformer_engine() else "local"


class MegatronEngine:
    """Chunks of one role on one mesh; trained when it gets an optimizer config."""

    def __init__(
        self,
        hf: Mapping[str, Any],
        shape: ModelShape,
        mesh: RoleMesh,
        dtype: torch.dtype,
        *,
        recompute_granularity: str | None = None,
        optimizer: OptimizerConfig | None = None,
        total_steps: int = 1,
    ) -> None:
        self.shape, self.mesh, self.dtype = shape, mesh, dtype
        with mesh.activate():
            self.chunks = build_chunks(hf, shape, mesh, dtype, recompute_granularity)
            if optimizer is None:
                for chunk in self.chunks:
                    chunk.requires_grad_(False)
            self.trainer = Trainer(self.chunks, mesh, optimizer, total_steps) if optimizer else None
        self._models = self.trainer.chunks if self.trainer else self.chunks
        self._check_parameters()
        self.on_write: list[Callable[[], None]] = []
        """Called when parameters change: right before an optimizer step, and after a load."""

    def parameters(self) -> dict[str, Tensor]:
        """Local parameters by the planner's names; after DDP they are views of its buckets."""
        return {
            f"{index}/{name}": parameter
            for index, chunk in enumerate(self.chunks)
            for name, parameter in chunk.named_parameters()
        }

    def weights_changed(self) -> None:
        """Tell the optimizer that parameters were written from outside (a load)."""
        if self.trainer is not None:
            self.trainer.onload()
            self.trainer.reload_master_weights()
        self._tell_of_write()

    def offload(self) -> None:
        """Give back what only training needs, as the optimizer's settings say.

        The next `train_step` takes it again.
        """
        if self.trainer is not None:
            self.trainer.offload()

    def forward(
        self,
        micro_batches: Sequence[MicroBatch],
        loss: Loss,
        *,
        temperature: float = 1.0,
        with_entropy: bool = False,
    ) -> list[dict[str, Tensor]]:
        """Score micro-batches without gradients; reports of the last stage, [] elsewhere."""
        with self.mesh.activate(), torch.no_grad():
            return self._run(micro_batches, loss, True, temperature, with_entropy)

    def train_step(
        self,
        micro_batches: Sequence[MicroBatch],
        loss: Loss,
        check: Callable[[list[dict[str, Tensor]]], None],
        *,
        temperature: float = 1.0,
        with_entropy: bool = False,
    ) -> tuple[list[dict[str, Tensor]], StepResult]:
        """One optimizer step; `check` sees the reports before the step and may raise."""
        assert self.trainer is not None, f"{self.mesh.role} is not trained"
        with self.mesh.activate():
            self.trainer.onload()
            self.trainer.zero_grad()
            reports = self._run(micro_batches, loss, False, temperature, with_entropy)
            check(reports)
            self._tell_of_write()
            return reports, self.trainer.step()

    def _tell_of_write(self) -> None:
        for listener in self.on_write:
            listener()

    def _run(
        self,
        micro_batches: Sequence[MicroBatch],
        loss: Loss,
        forward_only: bool,
        temperature: float,
        with_entropy: bool,
    ) -> list[dict[str, Tensor]]:
        return run_schedule(
            self._models,
            self.mesh,
            micro_batches,
            loss,
            forward_only=forward_only,
            temperature=temperature,
            with_entropy=with_entropy,
        )

    def _check_parameters(self) -> None:
        """The live model must have exactly the parameters the planner believes in."""
        expected = megatron_parameters(
            self.shape, megatron_slice(self.mesh.layout, self.mesh.rank, layernorm_names())
        )
        found = {name: tuple(p.shape) for name, p in self.parameters().items()}
        if found != expected:
            odd = sorted(set(expected.items()) ^ set(found.items()))[0]
            raise PlanError(
                f"{self.mesh.role}: Megatron's parameters are not what the layout tables say, "
                f"first at {odd[0]} {list(odd[1])}; this megatron-core is not a known one"
            )

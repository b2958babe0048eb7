"""DDP wrapping, Adam and learning-rate schedule of a trained role, all Megatron-Core's."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from megatron.core.distributed import (
    DistributedDataParallel,
    DistributedDataParallelConfig,
    finalize_model_grads,
)
from megatron.core.optimizer import MegatronOptimizer, get_megatron_optimizer
from megatron.core.optimizer import OptimizerConfig as MegatronOptimizerConfig
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler
from megatron.core.utils import get_model_config

from megarl.config.schema import OptimizerConfig
from megarl.mesh.role_mesh import RoleMesh
from megarl.models.offload import Offload, gradient_tensors, optimizer_tensors


@dataclass
class StepResult:
    """One optimizer step."""

    grad_norm: float
    """Global L2 norm before clipping."""
    applied: bool
    """False when Megatron skipped the step (overflow)."""
    lr: float
    """Learning rate that was used."""


class Trainer:
    """A role's chunks under DDP with their optimizer; use inside `mesh.activate()`."""

    def __init__(
        self,
        chunks: list[torch.nn.Module],
        mesh: RoleMesh,
        config: OptimizerConfig,
        total_steps: int,
    ) -> None:
        model_config = get_model_config(chunks[0])
        ddp_config = DistributedDataParallelConfig(
            grad_reduce_in_fp32=True,
            overlap_grad_reduce=config.overlap_grad_reduce,
            use_distributed_optimizer=config.use_distributed_optimizer,
        )
        self.chunks = [
            DistributedDataParallel(
                config=model_config,
                ddp_config=ddp_config,
                module=chunk,
                disable_bucketing=index > 0,
                pg_collection=mesh.groups,
            )
            for index, chunk in enumerate(chunks)
        ]
        model_config.finalize_model_grads_func = partial(
            finalize_model_grads, pg_collection=mesh.groups
        )
        # Under overlap a bucket is reduced as soon as its gradients are there, which must wait for
        # the last micro-batch.
        model_config.no_sync_func = None
        if config.overlap_grad_reduce:
            waits = [chunk.no_sync for chunk in self.chunks]
            model_config.no_sync_func = waits if len(waits) > 1 else waits[0]
        self.optimizer: MegatronOptimizer = get_megatron_optimizer(
            MegatronOptimizerConfig(
                optimizer="adam",
                lr=config.lr,
                min_lr=config.min_lr,
                weight_decay=config.weight_decay,
                adam_beta1=config.adam_beta1,
                adam_beta2=config.adam_beta2,
                adam_eps=config.adam_eps,
                clip_grad=config.clip_grad,
                bf16=model_config.bf16,
                params_dtype=model_config.params_dtype,
                use_distributed_optimizer=config.use_distributed_optimizer,
            ),
            self.chunks,
            use_gloo_process_groups=False,
            pg_collection=mesh.groups,
        )
        for group in self.optimizer.param_groups:
            if "fused" in group:  # torch's own Adam; apex's and TransformerEngine's always are
                group["fused"], group["foreach"] = True, False
        model_config.grad_scale_func = self.optimizer.scale_loss
        decay_steps = config.lr_decay_steps or max(total_steps, config.lr_warmup_steps + 1)
        self.schedule = OptimizerParamScheduler(
            self.optimizer,
            init_lr=0.0,
            max_lr=config.lr,
            min_lr=config.min_lr,
            lr_warmup_steps=config.lr_warmup_steps,
            lr_decay_steps=decay_steps,
            lr_decay_style=config.lr_decay_style,
            start_wd=config.weight_decay,
            end_wd=config.weight_decay,
            wd_incr_steps=decay_steps,
            wd_incr_style="constant",
        )

        self._states = Offload(lambda: self._state_tensors() if config.optimizer_offload else ())
        self._gradients = Offload(
            lambda: gradient_tensors(self.chunks) if config.grad_offload else ()
        )

    def offload(self) -> int:
        """Give back the memory that the settings name until `onload`; the bytes on this rank."""
        return self._states.leave() + self._gradients.leave()

    def onload(self) -> None:
        """Take that memory again, where it was given back, with what was in it."""
        self.onload_states()
        self._gradients.come_back()

    def onload_states(self) -> None:
        """The same for the optimizer alone, whose states a checkpoint reads and writes."""
        self._states.come_back()

    def zero_grad(self) -> None:
        """Forget the gradients of the last step."""
        for chunk in self.chunks:
            chunk.zero_grad_buffer()
        self.optimizer.zero_grad()

    def step(self) -> StepResult:
        """Apply the gathered gradients, move the schedule by one optimizer step."""
        lr = float(self.optimizer.param_groups[0]["lr"])
        applied, grad_norm, _ = self.optimizer.step()
        self.schedule.step(increment=1)
        return StepResult(float(grad_norm or 0.0), bool(applied), lr)

    def reload_master_weights(self) -> None:
        """Copy the model's weights into the fp32 main weights, after the model was loaded."""
        self.optimizer.reload_model_params()

    def _state_tensors(self) -> Iterator[torch.Tensor]:
        parameters = [p for chunk in self.chunks for p in chunk.parameters()]
        return optimizer_tensors(self.optimizer, parameters)

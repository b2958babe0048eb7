"""Forward and backward over Megatron's pipeline schedules, for any list of micro-batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.pipeline_parallel.p2p_communication import P2PCommunicator
from megatron.core.utils import get_model_config
from torch import Tensor

from megarl.mesh.role_mesh import RoleMesh
from megarl.models.gpt import ScoredTokens
from megarl.models.micro_batch import MicroBatch

Loss = Callable[[Any, MicroBatch], tuple[Tensor, dict[str, Tensor]]]
"""(what the last stage returned, its micro-batch) -> (share of the global loss, sums to report)."""


def run_schedule(
    chunks: list[torch.nn.Module],
    mesh: RoleMesh,
    micro_batches: Sequence[MicroBatch],
    loss: Loss,
    *,
    forward_only: bool = False,
    temperature: float = 1.0,
    with_entropy: bool = False,
) -> list[dict[str, Tensor]]:
    """Run the micro-batches through the pipeline; call inside `mesh.activate()`.

    The loss is this rank's share of a loss that is already divided by its global denominator.
    Returns the reported sums of each micro-batch on the last stage, in order; [] elsewhere.
    """
    scale = len(micro_batches) * mesh.layout.dp
    device = next(chunks[0].parameters()).device

    def forward_step(data: Iterator[MicroBatch], model: torch.nn.Module) -> tuple[Any, Any]:
        batch = next(data)
        length = batch.tokens.shape[1]
        positions = torch.arange(length).expand(batch.tokens.shape).to(device)
        mask = batch.attention_mask()
        scored = ScoredTokens(batch.position.to(device), batch.target.to(device))
        output = model(
            batch.tokens.to(device),
            positions,
            None if mask is None else mask.to(device),
            scored=scored,
            temperature=temperature,
            with_entropy=with_entropy,
        )

        def loss_func(output: Any) -> tuple[Tensor, dict[str, Tensor]]:
            value, report = loss(output, batch)
            return undo_schedule_scale(value, scale), report

        return output, loss_func

    config = get_model_config(chunks[0])
    vpp = mesh.layout.vpp
    schedule = get_forward_backward_func(mesh.layout.pp, vpp if vpp > 1 else None)
    data = [iter(micro_batches) for _ in chunks]
    longest = max(batch.tokens.shape[1] for batch in micro_batches)
    widest = max(batch.tokens.shape[0] for batch in micro_batches)
    return schedule(
        forward_step_func=forward_step,
        data_iterator=data if vpp > 1 else data[0],
        model=chunks if vpp > 1 else chunks[0],
        num_microbatches=len(micro_batches),
        seq_length=longest,
        micro_batch_size=widest,
        forward_only=forward_only,
        p2p_communicator=P2PCommunicator(pp_group=mesh.groups.pp, config=config),
        pg_collection=mesh.groups,
    )


def undo_schedule_scale(loss: Tensor, scale: int) -> Tensor:
    """Multiply away what Megatron divides by.

    The schedule divides each loss by the number of micro-batches, and DDP divides the summed
    gradients by the number of data-parallel ranks: `scale` is their product.
    """
    return loss * scale

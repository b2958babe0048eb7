"""Whole jobs for the executor: a model's layouts on pretended nodes."""

from __future__ import annotations

from collections.abc import Sequence

from jobs_reshard import World
from layout_world import megatron_ranks, model

from megarl.layout import (
    ModelShape,
    VllmSlice,
    hf_tensors,
    megatron_parameters,
    megatron_placement,
    vllm_parameters,
    vllm_placement,
)


def model_world(
    *, tp: int, pp: int, dp: int, rollout_tp: int, world: int, nodes: Sequence[int], tied: bool
) -> World:
    """An actor on the first ranks, vLLM replicas on all."""
    shape: ModelShape = model("qwen2", tie_word_embeddings=tied, num_key_value_heads=4)
    slices = megatron_ranks(shape, tp=tp, pp=pp, dp=dp)
    places = {rank: VllmSlice(rank % rollout_tp, rollout_tp) for rank in range(world)}
    padded = {
        name: (shape.padded_vocab_size, *dims[1:]) if dims[0] == shape.vocab_size else dims
        for name, dims in hf_tensors(shape).items()
    }
    return World(
        padded,
        {rank: megatron_placement(shape, place) for rank, place in slices.items()},
        {rank: megatron_parameters(shape, place) for rank, place in slices.items()},
        {rank: vllm_placement(shape, place) for rank, place in places.items()},
        {rank: vllm_parameters(shape, place) for rank, place in places.items()},
        nodes,
    )

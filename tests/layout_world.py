"""A whole job in one process: model shapes, ranks' buffers as numpy arrays, plans carried out."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from megarl.layout import (
    MegatronSlice,
    ModelShape,
    Piece,
    Placement,
    Plan,
    VllmSlice,
    hf_tensors,
    megatron_parameters,
    megatron_placement,
    model_shape_from_hf,
    vllm_parameters,
    vllm_placement,
)

Array = NDArray[np.int64]
Buffers = dict[str, Array]
ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "mixtral": "MixtralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
}
UNTOUCHED = -1


def model(family: str = "llama", **changes: Any) -> ModelShape:
    """A tiny model: 4 layers, 8 heads of size 4 over 4 KV heads, a vocabulary of 150.

    Where there are experts, 8 of them of 24 hidden units.
    """
    config: dict[str, Any] = {
        "architectures": [ARCHITECTURES[family]],
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 4,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 4,
        "vocab_size": 150,
    }
    if family == "mixtral":
        config["num_local_experts"] = 8
    if family == "qwen3_moe":
        config |= {"num_experts": 8, "moe_intermediate_size": 24}
    return model_shape_from_hf(config | changes)


def hf_values(shape: ModelShape, *, padded: bool) -> Buffers:
    """Full tensors in which every element of the model is different."""
    tensors, start = {}, 0
    for name, dims in hf_tensors(shape).items():
        if padded and dims[0] == shape.vocab_size:
            dims = (shape.padded_vocab_size, *dims[1:])
        tensors[name] = np.arange(start, start + prod(dims)).reshape(dims)
        start += prod(dims)
    return tensors


def region(buffers: Buffers, piece: Piece) -> Array:
    """The view of a piece in its rank's buffers."""
    flat = buffers[piece.buffer].reshape(-1)
    return strided(flat, piece.offset, piece.box.shape, piece.strides)


def strided(flat: Array, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> Array:
    """A checked view of a flat buffer."""
    last = offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
    assert 0 <= offset <= last < flat.size
    return as_strided(flat[offset:], shape, tuple(s * flat.itemsize for s in strides))


def empty(parameters: Mapping[str, tuple[int, ...]]) -> Buffers:
    """Buffers that nothing was written to yet."""
    return {name: np.full(shape, UNTOUCHED) for name, shape in parameters.items()}


def fill(buffers: Buffers, placement: Placement, tensors: Buffers) -> Buffers:
    """Write every piece from the full tensors."""
    for piece in placement:
        index = tuple(slice(lo, hi) for lo, hi in zip(piece.box.lo, piece.box.hi, strict=True))
        region(buffers, piece)[...] = tensors[piece.tensor][index]
    return buffers


def run(plan: Plan, sources: Mapping[int, Buffers], destinations: Mapping[int, Buffers]) -> None:
    """Carry out a plan in its order; fails where an element is written twice.

    A relay that came before what it passes on would pass on `UNTOUCHED`.
    """
    for t in plan.transfers:
        src = (destinations if t.relay else sources)[t.src][t.src_buffer].reshape(-1)
        dst = destinations[t.dst][t.dst_buffer].reshape(-1)
        target = strided(dst, t.dst_offset, t.box.shape, t.dst_strides)
        assert (target == UNTOUCHED).all(), f"written twice: {t}"
        target[...] = strided(src, t.src_offset, t.box.shape, t.src_strides)


def megatron_ranks(
    shape: ModelShape,
    *,
    tp: int,
    pp: int = 1,
    dp: int = 1,
    ep: int = 1,
    etp: int = 1,
    **options: Any,
) -> dict[int, MegatronSlice]:
    """Megatron's mesh order: TP fastest, then DP, then PP; experts: expert-TP, EP, the rest, PP."""
    slices = {}
    for rank in range(tp * dp * pp):
        place = rank % (tp * dp)
        slices[rank] = MegatronSlice(
            rank % tp,
            tp,
            rank // (tp * dp),
            pp,
            ep_rank=place // etp % ep,
            ep_size=ep,
            etp_rank=place % etp,
            etp_size=etp,
            **options,
        )
    return slices


def megatron_world(
    shape: ModelShape, ranks: Mapping[int, MegatronSlice], tensors: Buffers, *, padded: bool
) -> tuple[dict[int, Placement], dict[int, Buffers]]:
    """Placements of all ranks, and their buffers full of weights."""
    placements = {r: megatron_placement(shape, s, padded_vocab=padded) for r, s in ranks.items()}
    return placements, {
        r: fill(empty(megatron_parameters(shape, ranks[r])), p, tensors)
        for r, p in placements.items()
    }


def vllm_world(
    shape: ModelShape, world: int, tp: int, pp: int = 1, expert_parallel: bool = False
) -> tuple[dict[int, Placement], dict[int, Buffers]]:
    """Placements of replicas of tp x pp ranks each, TP fastest, and their empty buffers."""
    slices = {
        r: VllmSlice(r % tp, tp, r // tp % pp, pp, expert_parallel=expert_parallel)
        for r in range(world)
    }
    placements = {r: vllm_placement(shape, s) for r, s in slices.items()}
    return placements, {r: empty(vllm_parameters(shape, s)) for r, s in slices.items()}

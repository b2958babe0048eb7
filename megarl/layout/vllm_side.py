"""vLLM's models: qkv stacked as [q; k; v] per rank, KV heads replicated when they are too few."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from math import prod

from megarl.errors import ConfigError
from megarl.layout.families.blocks import EMBEDDING
from megarl.layout.geometry import (
    Rows,
    Shard,
    check_divides,
    check_rank,
    local_pieces,
    local_shape,
)
from megarl.layout.placement import Placement
from megarl.layout.replica import VllmSlice
from megarl.layout.rules import VOCAB_MULTIPLE, ModelShape, Slot, expand, family_of, rules_for


@lru_cache(maxsize=1024)
def vllm_placement(shape: ModelShape, slice_: VllmSlice, *, padded_vocab: bool = True) -> Placement:
    """Everything the rank holds; buffers are vLLM's parameter names.

    padded_vocab: whether the padding rows of the vocabulary are part of the logical tensor.
    Equal arguments give the same object. Raises ConfigError where vLLM could not split this way.
    """
    shard = _shard(shape, slice_, padded_vocab)
    pieces = []
    for slot, buffer in _local_slots(shape, slice_, shard.experts):
        # The experts of a rank are one parameter, one expert after the other.
        before = slot.expert - shard.experts.start if slot.rule.experts else 0
        start = before * prod(local_shape(slot.rule, shape, shard))
        pieces += local_pieces(slot, buffer, shape, shard, start)
    return tuple(pieces)


def vllm_parameters(shape: ModelShape, slice_: VllmSlice) -> dict[str, tuple[int, ...]]:
    """Every local parameter and its local shape."""
    shard = _shard(shape, slice_, padded_vocab=True)
    stack = (len(shard.experts),)
    return {
        buffer: (stack if slot.rule.experts else ()) + local_shape(slot.rule, shape, shard)
        for slot, buffer in _local_slots(shape, slice_, shard.experts)
    }


def _shard(shape: ModelShape, slice_: VllmSlice, padded_vocab: bool) -> Shard:
    if shape.scalar_head is not None:
        raise ConfigError(f"vLLM: a model with the scalar head {shape.scalar_head} generates none")
    check_rank("vLLM", "tensor-parallel", slice_.tp_rank, slice_.tp_size)
    check_rank("vLLM", "pipeline", slice_.pp_rank, slice_.pp_size)
    # vLLM pads for itself; Megatron's padding is at least as long, and a multiple of it.
    vocab_rows = -(-shape.vocab_size // VOCAB_MULTIPLE) * VOCAB_MULTIPLE
    check_divides(
        "vLLM",
        slice_.tp_size,
        num_attention_heads=shape.num_heads,
        intermediate_size=0 if shape.num_experts else shape.ffn_hidden_size,
        expert_intermediate_size=0 if slice_.expert_parallel else shape.expert_ffn_size,
        padded_vocab_size=vocab_rows,
    )
    tp, kv = slice_.tp_size, shape.num_kv_heads
    if max(tp, kv) % min(tp, kv):
        raise ConfigError(
            f"vLLM: tensor-parallel size {tp} and num_key_value_heads {kv}: "
            "one must divide the other"
        )
    etp = (0, 1) if slice_.expert_parallel else (slice_.tp_rank, tp)
    experts = _local_experts(shape, slice_)
    return Shard(slice_.tp_rank, tp, vocab_rows, padded_vocab, _stacked_qkv, *etp, experts)


def _local_experts(shape: ModelShape, slice_: VllmSlice) -> range:
    """vLLM's "linear" placement: what is left over goes to the first ranks, one each."""
    if not slice_.expert_parallel:
        return range(shape.num_experts)
    count, more = divmod(shape.num_experts, slice_.tp_size)
    start = slice_.tp_rank * count + min(slice_.tp_rank, more)
    return range(start, start + count + (slice_.tp_rank < more))


def _stacked_qkv(shape: ModelShape, tp_rank: int, tp_size: int) -> list[Rows]:
    d = shape.head_dim
    q = shape.num_heads // tp_size * d
    heads = max(1, shape.num_kv_heads // tp_size)
    replicas = max(1, tp_size // shape.num_kv_heads)
    kv = tp_rank // replicas * heads * d
    return [
        Rows(0, tp_rank * q, (tp_rank + 1) * q),
        Rows(1, kv, kv + heads * d),
        Rows(2, kv, kv + heads * d),
    ]


def _stage_layers(num_layers: int, pp_rank: int, pp_size: int) -> range:
    """vLLM's own deal: what is left over goes to the stages before the last, from behind."""
    if pp_size > num_layers:
        raise ConfigError(f"vLLM: {num_layers} layers for {pp_size} pipeline stages")
    counts = [num_layers // pp_size] * pp_size
    for extra in range(num_layers % pp_size):
        counts[-(extra + 2)] += 1
    start = sum(counts[:pp_rank])
    return range(start, start + counts[pp_rank])


def _local_slots(
    shape: ModelShape, slice_: VllmSlice, experts: range
) -> Iterator[tuple[Slot, str]]:
    """Slot, parameter name: vLLM numbers layers globally."""
    rules = rules_for(shape)
    if shape.tied and slice_.pp_size > 1 and not family_of(shape).whole_ends_in_vllm:
        # The last stage computes logits with an embedding of its own.
        rules = (*rules, replace(EMBEDDING, place="last"))
    layers = _stage_layers(shape.num_layers, slice_.pp_rank, slice_.pp_size)
    everywhere = family_of(shape).whole_ends_in_vllm
    first = everywhere or slice_.pp_rank == 0
    last = everywhere or slice_.pp_rank == slice_.pp_size - 1
    for slot in expand(rules, layers, experts, first=first, last=last):
        yield slot, slot.rule.vllm.format(n=slot.layer)

"""Megatron-Core's GPTModel: query groups interleaved in linear_qkv, layers dealt over stages."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

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
from megarl.layout.rules import ModelShape, Slot, expand, rules_for

LayerNorm = Literal["local", "te"]


@dataclass(frozen=True, slots=True)
class MegatronSlice:
    """One rank's place in a Megatron mesh."""

    tp_rank: int = 0
    tp_size: int = 1
    pp_rank: int = 0
    pp_size: int = 1
    vpp_size: int = 1
    """Model chunks per stage (interleaved pipeline)."""
    first_stage_layers: int | None = None
    """num_layers_in_first_pipeline_stage; None: an equal share."""
    last_stage_layers: int | None = None
    ep_rank: int = 0
    ep_size: int = 1
    """Expert parallelism: equal, consecutive shares of the experts."""
    etp_rank: int = 0
    etp_size: int = 1
    """Tensor parallelism inside one expert."""
    layernorm: LayerNorm = "local"
    """The layer spec: TransformerEngine fuses the norms into the linear layers after them."""


def stage_layers(shape: ModelShape, slice_: MegatronSlice) -> tuple[range, ...]:
    """Global layer numbers of each model chunk of the rank's stage.

    Raises ConfigError where Megatron could not deal the layers this way.
    """
    pp, vpp = slice_.pp_size, slice_.vpp_size
    given = {0: slice_.first_stage_layers, pp - 1: slice_.last_stage_layers}
    fixed = {stage: count for stage, count in given.items() if count is not None}
    if pp == 1 and (slice_.first_stage_layers, slice_.last_stage_layers) != (None, None):
        raise ConfigError(
            "Megatron: num_layers_in_first_pipeline_stage and num_layers_in_last_pipeline_stage "
            "are for pipelines of 2 stages or more"
        )
    rest, stages_left = shape.num_layers - sum(fixed.values()), pp - len(fixed)
    even = rest // stages_left if stages_left else 0
    if rest < 0 or even * stages_left != rest:
        raise ConfigError(
            f"Megatron: {shape.num_layers} layers do not fit {pp} pipeline stages"
            + (f" with {fixed} layers on stages given" if fixed else "")
            + f": {rest} layers are left for {stages_left} equal stages"
        )
    counts = [fixed.get(stage, even) for stage in range(pp)]
    if min(counts) < 1:
        raise ConfigError(f"Megatron: a pipeline stage needs a layer, and the stages get {counts}")
    if vpp > 1 and (pp == 1 or any(count % vpp for count in counts)):
        raise ConfigError(
            f"Megatron: {vpp} virtual stages need more than one pipeline stage and must divide "
            f"the layers of each: {counts}"
        )
    per_round = [count // vpp for count in counts]
    before = sum(per_round[: slice_.pp_rank])
    size = per_round[slice_.pp_rank]
    starts = [chunk * sum(per_round) + before for chunk in range(vpp)]
    return tuple(range(start, start + size) for start in starts)


@lru_cache(maxsize=1024)
def megatron_placement(
    shape: ModelShape, slice_: MegatronSlice, *, padded_vocab: bool = True
) -> Placement:
    """Everything the rank holds; buffers are "<chunk>/<name in that chunk's named_parameters>".

    padded_vocab: whether the padding rows of the vocabulary are part of the logical tensor (they
    move between engines) or not (files have none). Equal arguments give the same object.
    """
    shard = _shard(shape, slice_, padded_vocab)
    pieces = []
    for slot, buffer in _local_slots(shape, slice_, shard.experts):
        pieces += local_pieces(slot, buffer, shape, shard)
    return tuple(pieces)


def megatron_parameters(shape: ModelShape, slice_: MegatronSlice) -> dict[str, tuple[int, ...]]:
    """Every local parameter, "<chunk>/<name>", and its local shape."""
    shard = _shard(shape, slice_, padded_vocab=True)
    return {
        buffer: local_shape(slot.rule, shape, shard)
        for slot, buffer in _local_slots(shape, slice_, shard.experts)
    }


def _shard(shape: ModelShape, slice_: MegatronSlice, padded_vocab: bool) -> Shard:
    check_rank("Megatron", "tensor-parallel", slice_.tp_rank, slice_.tp_size)
    check_rank("Megatron", "pipeline", slice_.pp_rank, slice_.pp_size)
    check_divides(
        "Megatron",
        slice_.tp_size,
        num_attention_heads=shape.num_heads,
        num_query_groups=shape.num_kv_heads,
        ffn_hidden_size=0 if shape.num_experts else shape.ffn_hidden_size,
        padded_vocab_size=shape.padded_vocab_size,
    )
    return Shard(
        slice_.tp_rank,
        slice_.tp_size,
        shape.padded_vocab_size,
        padded_vocab,
        _interleaved_qkv,
        slice_.etp_rank,
        slice_.etp_size,
        _local_experts(shape, slice_),
    )


def _local_experts(shape: ModelShape, slice_: MegatronSlice) -> range:
    ep, etp = slice_.ep_size, slice_.etp_size
    if not shape.num_experts:
        return range(0)
    check_rank("Megatron", "expert-parallel", slice_.ep_rank, ep)
    check_rank("Megatron", "expert-tensor-parallel", slice_.etp_rank, etp)
    if shape.num_experts % ep:
        raise ConfigError(
            f"Megatron: expert-parallel size {ep} does not divide num_experts {shape.num_experts}"
        )
    if shape.expert_ffn_size % etp:
        raise ConfigError(
            f"Megatron: expert-tensor-parallel size {etp} does not divide the experts' hidden size "
            f"{shape.expert_ffn_size}"
        )
    count = shape.num_experts // ep
    return range(slice_.ep_rank * count, (slice_.ep_rank + 1) * count)


def _interleaved_qkv(shape: ModelShape, tp_rank: int, tp_size: int) -> list[Rows]:
    d, per_group = shape.head_dim, shape.num_heads // shape.num_kv_heads * shape.head_dim
    groups = shape.num_kv_heads // tp_size
    rows = []
    for g in range(tp_rank * groups, (tp_rank + 1) * groups):
        rows.append(Rows(0, g * per_group, (g + 1) * per_group))
        rows.append(Rows(1, g * d, (g + 1) * d))
        rows.append(Rows(2, g * d, (g + 1) * d))
    return rows


def _local_slots(
    shape: ModelShape, slice_: MegatronSlice, experts: range
) -> Iterator[tuple[Slot, str]]:
    """Slot, buffer name: layers are numbered from 0 within each chunk, experts within a rank."""
    rules = rules_for(shape)
    if shape.tied and slice_.pp_size > 1:
        # The last stage cannot share storage with the first: Megatron keeps a copy there.
        rules = (*rules, replace(EMBEDDING, place="last", megatron="output_layer.weight"))
    chunks = stage_layers(shape, slice_)
    for chunk, layers in enumerate(chunks):
        first = slice_.pp_rank == 0 and chunk == 0
        last = slice_.pp_rank == slice_.pp_size - 1 and chunk == len(chunks) - 1
        for slot in expand(rules, layers, experts, first=first, last=last):
            rule = slot.rule
            name = rule.te if slice_.layernorm == "te" and rule.te else rule.megatron
            local = name.format(n=slot.layer - layers.start, e=slot.expert - experts.start)
            yield slot, f"{chunk}/{local}"

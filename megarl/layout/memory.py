"""What a rank's memory is filled with, from sizes alone: formulas, not measurements.

Weights, gradients and Adam's states as Megatron-Core keeps them: bf16 weights have fp32 gradients
(4 bytes) and an fp32 copy and two moments (12 bytes), fp32 weights two moments (8 bytes); a
distributed optimizer deals the latter over the data-parallel ranks (Rajbhandari et al. 2020, ZeRO,
https://arxiv.org/abs/1910.02054, stage 1).

Activations are counted as in Korthikanti et al. 2022, "Reducing Activation Recomputation in Large
Transformer Models" (https://arxiv.org/abs/2205.05198), for this layer: grouped queries, a gated
MLP, no dropout, and attention that keeps no scores. Per token and layer it keeps, in elements,

    input and output of both norms     4 h                    / t with sequence parallelism
    q, k, v and the attention's output (2 a + 2 g) d          / t
    gate, up and their product         3 f                    / t   (experts: 3 f_e for each chosen)

with hidden size h, a query and g key/value heads of size d, MLP size f, tensor-parallel size t.
Recomputing whole layers keeps the input, h, of each, and one layer in full. The first of p stages
has p micro-batches in flight (1F1B), so that it keeps as much as all layers of one would; v virtual
stages add a share of (p - 1) / (p v). The last stage holds fp32 logits and their gradients of one.

A checkpoint of a distributed optimizer is gathered over the data-parallel ranks, on the GPU: one
bucket of one of its three states at a time, in fp32, as NCCL receives it and as it is taken apart,
beside the rank's own share. Megatron-Core cuts buckets in the first chunk of the first stage, and
there only under overlap_grad_reduce; elsewhere all gradients of a type are one.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from megarl.layout.megatron_side import MegatronSlice, megatron_parameters, stage_layers
from megarl.layout.rules import ModelShape

LOGIT_BYTES = 4 + 4
"""fp32 logits and their gradients."""
BUCKET_ELEMENTS = 40_000_000
"""Megatron-Core closes a bucket once it holds as many, or a million for each data-parallel rank."""


@dataclass(frozen=True, slots=True)
class RankMemory:
    """Bytes of one role on one rank."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    """At most, during an update or a forward pass."""
    gathered: int
    """At most, while a checkpoint is saved."""

    @property
    def resident(self) -> int:
        """What is there at all times."""
        return self.weights + self.gradients + self.optimizer


@dataclass(frozen=True, slots=True)
class TrainedWith:
    """How a role is trained, as far as memory goes."""

    trained: bool
    """Whether it has gradients and an optimizer; else it only scores."""
    dtype_bytes: int
    data_ranks: int
    """Ranks over which the optimizer's states are dealt; 1: not at all."""
    expert_data_ranks: int
    """The same for the states of experts."""
    sequence_parallel: bool
    context_ranks: int
    recompute: str | None
    tokens: int
    """Of a micro-batch."""
    experts_per_token: int = 0
    bucket_elements: int | None = None
    """Of the first stage's buckets; None: there is one."""
    gathers: bool = False
    """Whether its optimizer is a distributed one."""


def rank_memory(shape: ModelShape, at: MegatronSlice, how: TrainedWith) -> RankMemory:
    """What a role keeps on the rank that `at` describes."""
    dense, experts = local_elements(shape, at)
    count, held = dense + experts, how.dtype_bytes
    states = 12 if held == 2 else 8
    dealt = -(-dense // how.data_ranks) + -(-experts // how.expert_data_ranks)
    return RankMemory(
        weights=count * held,
        gradients=4 * count if how.trained else 0,
        optimizer=states * dealt if how.trained else 0,
        activations=activation_bytes(shape, at, how),
        gathered=gathered_bytes(shape, at, how) if how.trained and how.gathers else 0,
    )


def gathered_bytes(shape: ModelShape, at: MegatronSlice, how: TrainedWith) -> int:
    """What a checkpoint's largest bucket takes on the GPU while it is gathered."""
    buffers: dict[tuple[str, bool], list[int]] = {}
    for name, local in megatron_parameters(shape, at).items():
        # Without expert parallelism their gradients lie with the others.
        chunk, is_expert = name.partition("/")[0], ".experts." in name and at.ep_size > 1
        buffers.setdefault((chunk, is_expert), []).append(prod(local))
    most = 0
    for (chunk, is_expert), sizes in buffers.items():
        bucket = sum(sizes)
        if how.bucket_elements is not None and at.pp_rank == 0 and chunk == "0":
            bucket = min(bucket, how.bucket_elements + max(sizes))
        own = -(-bucket // (how.expert_data_ranks if is_expert else how.data_ranks))
        most = max(most, 4 * (2 * bucket + own))
    return most


def local_elements(shape: ModelShape, at: MegatronSlice) -> tuple[int, int]:
    """Elements of a rank's parameters, padding included: those of experts apart."""
    dense = experts = 0
    for name, local in megatron_parameters(shape, at).items():
        if ".experts." in name:
            experts += prod(local)
        else:
            dense += prod(local)
    return dense, experts


def activation_bytes(shape: ModelShape, at: MegatronSlice, how: TrainedWith) -> int:
    """The most that one rank keeps for the backward pass, or for a forward pass alone."""
    layers = sum(len(chunk) for chunk in stage_layers(shape, at))
    tokens = how.tokens / how.context_ranks
    kept, whole = layer_elements(shape, at, how)
    if how.trained:
        in_flight = float(at.pp_size - at.pp_rank)
        if at.vpp_size > 1:
            in_flight += (at.pp_size - 1) / at.vpp_size
        elements = kept * layers * in_flight + (whole if how.recompute == "full" else 0)
    else:  # nothing is kept: one layer at a time
        elements = whole
    found = tokens * elements * how.dtype_bytes
    if at.pp_rank == at.pp_size - 1 and shape.scalar_head is None:
        logit = LOGIT_BYTES if how.trained else LOGIT_BYTES // 2
        found += tokens * shape.padded_vocab_size / at.tp_size * logit
    return round(found)


def layer_elements(shape: ModelShape, at: MegatronSlice, how: TrainedWith) -> tuple[float, float]:
    """Elements per token that one layer keeps with this recomputation, and without any."""
    shared = at.tp_size if how.sequence_parallel else 1
    hidden, t = shape.hidden_size, at.tp_size
    attention = (2 * shape.num_heads + 2 * shape.num_kv_heads) * shape.head_dim / t
    mlp = 3 * shape.ffn_hidden_size / t
    if shape.num_experts:
        # A rank's share of the chosen experts' tokens: those of its own, with balanced routing.
        mlp = how.experts_per_token * (3 * shape.expert_ffn_size + hidden) / t
    whole = 4 * hidden / shared + attention + mlp
    if how.recompute == "full":
        return hidden / shared, whole
    if how.recompute == "selective":  # the attention's inside is made again
        return whole - shape.num_heads * shape.head_dim / t, whole
    return whole, whole

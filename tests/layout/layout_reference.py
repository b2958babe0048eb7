"""Both engines' sharding written out literally, per parameter, sharing nothing with megarl.layout.

vLLM's after its weight loaders; Megatron's after its documented linear_qkv and linear_fc1 order.
"""

from __future__ import annotations

import numpy as np
from layout_world import Array, Buffers

from megarl.layout import ModelShape


def vllm_rank(
    shape: ModelShape, tensors: Buffers, rank: int, tp: int, expert_parallel: bool = False
) -> Buffers:
    """Every parameter of one vLLM tensor rank, of all layers, from padded full tensors."""

    def rows(x: Array) -> Array:
        return np.split(x, tp)[rank]

    def columns(x: Array) -> Array:
        return np.split(x, tp, axis=1)[rank]

    def kv(x: Array) -> Array:
        heads = np.split(x, shape.num_kv_heads)
        if tp >= shape.num_kv_heads:
            return heads[rank // (tp // shape.num_kv_heads)]
        return np.concatenate(np.array_split(np.stack(heads), tp)[rank])

    vocab = -(-shape.vocab_size // 64) * 64
    out = {"model.embed_tokens.weight": rows(tensors["model.embed_tokens.weight"][:vocab])}
    for n in range(shape.num_layers):
        at = f"model.layers.{n}."
        for kind in ["weight", "bias"] if shape.qkv_bias else ["weight"]:
            q, k, v = (tensors[f"{at}self_attn.{x}_proj.{kind}"] for x in "qkv")
            out[f"{at}self_attn.qkv_proj.{kind}"] = np.concatenate([rows(q), kv(k), kv(v)])
        for x in "qk" if shape.qk_norm else "":
            name = f"{at}self_attn.{x}_norm.weight"
            out[name] = tensors[name]
        for name in (f"{at}input_layernorm.weight", f"{at}post_attention_layernorm.weight"):
            out[name] = tensors[name]
        out[f"{at}self_attn.o_proj.weight"] = columns(tensors[f"{at}self_attn.o_proj.weight"])
        if shape.num_experts:
            out |= _experts(shape, tensors, at, rank, tp, expert_parallel)
            continue
        out[f"{at}mlp.down_proj.weight"] = columns(tensors[f"{at}mlp.down_proj.weight"])
        out[f"{at}mlp.gate_up_proj.weight"] = np.concatenate(
            [rows(tensors[f"{at}mlp.{x}_proj.weight"]) for x in ("gate", "up")]
        )
    out["model.norm.weight"] = tensors["model.norm.weight"]
    if not shape.tied:
        out["lm_head.weight"] = rows(tensors["lm_head.weight"][:vocab])
    return out


EXPERT_NAMES = {
    "mixtral": ("block_sparse_moe.", ("w1", "w3", "w2")),
    "qwen3_moe": ("mlp.", ("gate_proj", "up_proj", "down_proj")),
}


def _experts(
    shape: ModelShape, tensors: Buffers, at: str, rank: int, tp: int, expert_parallel: bool
) -> Buffers:
    """vLLM's stacked experts: whole ones of its own, or its share of each."""
    module, names = EXPERT_NAMES[shape.family]
    gates, ups, downs = (
        np.stack([tensors[f"{at}{module}experts.{e}.{n}.weight"] for e in range(shape.num_experts)])
        for n in names
    )
    if expert_parallel:
        mine = np.array_split(np.arange(shape.num_experts), tp)[rank]
        gates, ups, downs = gates[mine], ups[mine], downs[mine]
    else:
        gates, ups = (np.split(x, tp, axis=1)[rank] for x in (gates, ups))
        downs = np.split(downs, tp, axis=2)[rank]
    experts = f"{at}{module}experts.routed_experts."
    return {
        f"{at}{module}gate.weight": tensors[f"{at}{module}gate.weight"],
        f"{experts}w13_weight": np.concatenate([gates, ups], axis=1),
        f"{experts}w2_weight": downs,
    }


def megatron_layer(shape: ModelShape, tensors: Buffers, layer: int, rank: int, tp: int) -> Buffers:
    """The split parameters of one layer on one TP rank, names without prefix."""
    at, d = f"model.layers.{layer}.", shape.head_dim
    per_group = shape.num_heads // shape.num_kv_heads * d
    out = {}
    for kind in ["weight", "bias"] if shape.qkv_bias else ["weight"]:
        q, k, v = (tensors[f"{at}self_attn.{x}_proj.{kind}"] for x in "qkv")
        full = []
        for g in range(shape.num_kv_heads):
            full += [q[g * per_group : (g + 1) * per_group]]
            full += [k[g * d : (g + 1) * d], v[g * d : (g + 1) * d]]
        out[f"self_attention.linear_qkv.{kind}"] = np.split(np.concatenate(full), tp)[rank]
    out["mlp.linear_fc1.weight"] = np.concatenate(
        [np.split(tensors[f"{at}mlp.{x}_proj.weight"], tp)[rank] for x in ("gate", "up")]
    )
    for name, hf in (
        ("self_attention.linear_proj.weight", "self_attn.o_proj.weight"),
        ("mlp.linear_fc2.weight", "mlp.down_proj.weight"),
    ):
        out[name] = np.split(tensors[at + hf], tp, axis=1)[rank]
    return out

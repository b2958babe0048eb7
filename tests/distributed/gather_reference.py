"""Megatron's shards of all ranks -> full Hugging Face tensors, written out literally.

Shares nothing with megarl.layout: what it says comes from Megatron-Core's documented layouts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from megarl.mesh.layout import MeshLayout

Shards = Sequence[Mapping[str, Tensor]]
"""By pool rank: "<chunk>/<parameter>" -> this rank's shard."""


def full_weights(shards: Shards, layout: MeshLayout, hf: Mapping[str, Any]) -> dict[str, Tensor]:
    """Every tensor of the model, from the ranks of the first data-parallel slice."""
    tp, pp, vpp, vocab = layout.tp, layout.pp, layout.vpp, hf["vocab_size"]

    def parts(stage: int, name: str) -> list[Tensor]:
        return [shards[layout.rank(tp=t, pp=stage)][name] for t in range(tp)]

    last = f"{vpp - 1}/"
    out = {
        "model.embed_tokens.weight": torch.cat(parts(0, "0/embedding.word_embeddings.weight")),
        "model.norm.weight": parts(pp - 1, last + "decoder.final_layernorm.weight")[0],
    }
    if not hf["tie_word_embeddings"]:
        out["lm_head.weight"] = torch.cat(parts(pp - 1, last + "output_layer.weight"))
    out = {
        n: x[:vocab] if n.endswith(("tokens.weight", "head.weight")) else x for n, x in out.items()
    }
    per_chunk = hf["num_hidden_layers"] // (pp * vpp)
    for chunk in range(vpp):
        for stage in range(pp):
            for local in range(per_chunk):
                layer = (chunk * pp + stage) * per_chunk + local
                at = f"{chunk}/decoder.layers.{local}."
                names = [
                    n.removeprefix(at) for n in shards[layout.rank(pp=stage)] if n.startswith(at)
                ]
                found = {name: parts(stage, at + name) for name in names}
                out |= _layer(found, hf, f"model.layers.{layer}.")
    return out


def _layer(parts: Mapping[str, list[Tensor]], hf: Mapping[str, Any], at: str) -> dict[str, Tensor]:
    heads, groups = hf["num_attention_heads"], hf["num_key_value_heads"]
    size, out = hf.get("head_dim") or hf["hidden_size"] // heads, {}
    for kind in ("weight", "bias"):
        if f"self_attention.linear_qkv.{kind}" in parts:
            fused = torch.cat(parts[f"self_attention.linear_qkv.{kind}"])
            # One query group after the other: its queries, its key, its value.
            per_group = fused.view(groups, (heads // groups + 2) * size, -1)
            q, k, v = per_group.split([heads // groups * size, size, size], dim=1)
            for name, x in (("q", q), ("k", k), ("v", v)):
                x = x.reshape(-1, x.shape[-1])
                out[f"{at}self_attn.{name}_proj.{kind}"] = x[:, 0] if kind == "bias" else x
    halves = [part.chunk(2) for part in parts["mlp.linear_fc1.weight"]]
    out[f"{at}mlp.gate_proj.weight"] = torch.cat([gate for gate, _ in halves])
    out[f"{at}mlp.up_proj.weight"] = torch.cat([up for _, up in halves])
    out[f"{at}self_attn.o_proj.weight"] = torch.cat(parts["self_attention.linear_proj.weight"], 1)
    out[f"{at}mlp.down_proj.weight"] = torch.cat(parts["mlp.linear_fc2.weight"], 1)
    for ours, theirs in (
        ("input_layernorm", "input_layernorm"),
        ("pre_mlp_layernorm", "post_attention_layernorm"),
        ("self_attention.q_layernorm", "self_attn.q_norm"),
        ("self_attention.k_layernorm", "self_attn.k_norm"),
    ):
        if f"{ours}.weight" in parts:
            out[f"{at}{theirs}.weight"] = parts[f"{ours}.weight"][0]
    return out

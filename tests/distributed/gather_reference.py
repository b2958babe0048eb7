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
    layer = -1
    for chunk in range(vpp):
        for stage in range(pp):
            for local in range(_layers_of(layout, stage, hf["num_hidden_layers"])):
                layer += 1
                at = f"{chunk}/decoder.layers.{local}."
                names = [
                    n.removeprefix(at) for n in shards[layout.rank(pp=stage)] if n.startswith(at)
                ]
                found = {name: parts(stage, at + name) for name in names}
                out |= _layer(found, hf, f"model.layers.{layer}.")
                if hf["model_type"] in EXPERTS:
                    whole = [
                        shards[layout.rank(pp=stage) + i] for i in range(layout.tp * layout.dp)
                    ]
                    out |= _experts(whole, layout, hf, at, f"model.layers.{layer}.")
    return out


def _layers_of(layout: MeshLayout, stage: int, total: int) -> int:
    """Layers of one chunk of a stage; only the first stage may have a number of its own."""
    first = layout.first_stage_layers
    if first is None:
        return total // (layout.pp * layout.vpp)
    return first if stage == 0 else (total - first) // (layout.pp - 1)


EXPERTS = {
    "mixtral": ("block_sparse_moe.", ("w1", "w3", "w2")),
    "qwen3_moe": ("mlp.", ("gate_proj", "up_proj", "down_proj")),
}
"""model_type -> module and names of an expert's gate, up and down."""


def _experts(
    stage: Shards, layout: MeshLayout, hf: Mapping[str, Any], at: str, hf_at: str
) -> dict[str, Tensor]:
    """All experts of a layer, from all ranks of its stage; expert-TP ranks are neighbours."""
    module, (gate, up, down) = EXPERTS[hf["model_type"]]
    number = hf.get("num_experts", hf.get("num_local_experts"))
    each, out = number // layout.ep, {}
    out[f"{hf_at}{module}gate.weight"] = stage[0][f"{at}mlp.router.weight"]
    for expert in range(number):
        first = expert // each * layout.etp
        name = f"{at}mlp.experts.local_experts.{expert % each}.linear_fc"
        ranks = [stage[first + t] for t in range(layout.etp)]
        halves = [rank[f"{name}1.weight"].chunk(2) for rank in ranks]
        one = f"{hf_at}{module}experts.{expert}."
        out[f"{one}{gate}.weight"] = torch.cat([half[0] for half in halves])
        out[f"{one}{up}.weight"] = torch.cat([half[1] for half in halves])
        out[f"{one}{down}.weight"] = torch.cat([rank[f"{name}2.weight"] for rank in ranks], 1)
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
    out[f"{at}self_attn.o_proj.weight"] = torch.cat(parts["self_attention.linear_proj.weight"], 1)
    if "mlp.linear_fc1.weight" in parts:
        halves = [part.chunk(2) for part in parts["mlp.linear_fc1.weight"]]
        out[f"{at}mlp.gate_proj.weight"] = torch.cat([gate for gate, _ in halves])
        out[f"{at}mlp.up_proj.weight"] = torch.cat([up for _, up in halves])
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

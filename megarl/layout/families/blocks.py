"""Rules that several families share word for word."""

from __future__ import annotations

from dataclasses import replace

from megarl.layout.families.rule import Rule

_HF = "model.layers.{n}."
_MG = "decoder.layers.{n}."

EMBEDDING = Rule(
    kind="vocab",
    place="first",
    hf=("model.embed_tokens.weight",),
    dims=(("vocab", "hidden"),),
    megatron="embedding.word_embeddings.weight",
    vllm="model.embed_tokens.weight",
)
INPUT_NORM = Rule(
    kind="replicated",
    place="layer",
    hf=(_HF + "input_layernorm.weight",),
    dims=(("hidden",),),
    megatron=_MG + "input_layernorm.weight",
    te=_MG + "self_attention.linear_qkv.layer_norm_weight",
    vllm=_HF + "input_layernorm.weight",
)
QKV = Rule(
    kind="qkv",
    place="layer",
    hf=tuple(_HF + f"self_attn.{x}_proj.weight" for x in "qkv"),
    dims=(("q", "hidden"), ("kv", "hidden"), ("kv", "hidden")),
    megatron=_MG + "self_attention.linear_qkv.weight",
    vllm=_HF + "self_attn.qkv_proj.weight",
)
QKV_BIAS = Rule(
    kind="qkv",
    place="layer",
    hf=tuple(_HF + f"self_attn.{x}_proj.bias" for x in "qkv"),
    dims=(("q",), ("kv",), ("kv",)),
    megatron=_MG + "self_attention.linear_qkv.bias",
    vllm=_HF + "self_attn.qkv_proj.bias",
)
Q_NORM, K_NORM = (
    Rule(
        kind="replicated",
        place="layer",
        hf=(_HF + f"self_attn.{x}_norm.weight",),
        dims=(("head",),),
        megatron=_MG + f"self_attention.{x}_layernorm.weight",
        vllm=_HF + f"self_attn.{x}_norm.weight",
    )
    for x in "qk"
)
O_PROJ = Rule(
    kind="row",
    place="layer",
    hf=(_HF + "self_attn.o_proj.weight",),
    dims=(("hidden", "q"),),
    megatron=_MG + "self_attention.linear_proj.weight",
    vllm=_HF + "self_attn.o_proj.weight",
)
MLP_NORM = Rule(
    kind="replicated",
    place="layer",
    hf=(_HF + "post_attention_layernorm.weight",),
    dims=(("hidden",),),
    megatron=_MG + "pre_mlp_layernorm.weight",
    te=_MG + "mlp.linear_fc1.layer_norm_weight",
    vllm=_HF + "post_attention_layernorm.weight",
)
GATE_UP = Rule(
    kind="gate_up",
    place="layer",
    hf=(_HF + "mlp.gate_proj.weight", _HF + "mlp.up_proj.weight"),
    dims=(("ffn", "hidden"), ("ffn", "hidden")),
    megatron=_MG + "mlp.linear_fc1.weight",
    vllm=_HF + "mlp.gate_up_proj.weight",
)
DOWN_PROJ = Rule(
    kind="row",
    place="layer",
    hf=(_HF + "mlp.down_proj.weight",),
    dims=(("hidden", "ffn"),),
    megatron=_MG + "mlp.linear_fc2.weight",
    vllm=_HF + "mlp.down_proj.weight",
)
FINAL_NORM = Rule(
    kind="replicated",
    place="last",
    hf=("model.norm.weight",),
    dims=(("hidden",),),
    megatron="decoder.final_layernorm.weight",
    vllm="model.norm.weight",
)
LM_HEAD = Rule(
    kind="vocab",
    place="last",
    hf=("lm_head.weight",),
    dims=(("vocab", "hidden"),),
    megatron="output_layer.weight",
    vllm="lm_head.weight",
)


def expert_rules(
    at: str, router: str, gate: str, up: str, down: str
) -> tuple[Rule, Rule, Rule, Rule]:
    """Norm, router, gate above up, and down of a layer of experts.

    at: Hugging Face module under the layer, such as "mlp."; the others are names under it.
    """
    hf, mg, vllm = _HF + at, _MG + "mlp.", _HF + at + "experts.routed_experts."
    return (
        replace(MLP_NORM, te=""),  # TransformerEngine fuses it into dense layers only
        Rule(
            kind="replicated",
            place="layer",
            hf=(hf + router,),
            dims=(("experts", "hidden"),),
            megatron=mg + "router.weight",
            vllm=hf + router,
        ),
        Rule(
            kind="gate_up",
            place="layer",
            hf=(hf + gate, hf + up),
            dims=(("expert_ffn", "hidden"), ("expert_ffn", "hidden")),
            megatron=mg + "experts.local_experts.{e}.linear_fc1.weight",
            te=mg + "experts.linear_fc1.weight{e}",
            vllm=vllm + "w13_weight",
            experts=True,
        ),
        Rule(
            kind="row",
            place="layer",
            hf=(hf + down,),
            dims=(("hidden", "expert_ffn"),),
            megatron=mg + "experts.local_experts.{e}.linear_fc2.weight",
            te=mg + "experts.linear_fc2.weight{e}",
            vllm=vllm + "w2_weight",
            experts=True,
        ),
    )

"""The `args` that Megatron-LM reads from a checkpoint, under its own names."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from typing import Any

import torch

from megarl.layout import ModelShape
from megarl.layout.rules import VOCAB_MULTIPLE
from megarl.models.rope import rope_parameters

CHECKPOINT_VERSION = 3.0


MEGATRON_ROPE = {
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
"""What Megatron-LM's `--use-rope-scaling` takes for given."""


def other_rope(hf: Mapping[str, Any]) -> str | None:
    """What to say of a model whose scaled rope Megatron-LM would compute otherwise; else None."""
    rope = rope_parameters(hf)
    if rope["rope_type"] != "llama3":
        return None
    found = {name: rope.get(name, value) for name, value in MEGATRON_ROPE.items()}
    if found == MEGATRON_ROPE:
        return None
    return (
        f"the model's rope scaling has {found}, and Megatron-LM's --use-rope-scaling always has "
        f"{MEGATRON_ROPE}: MegaRL reads the model's own from config.json, Megatron-LM cannot"
    )


def common_state(hf: Mapping[str, Any], shape: ModelShape, dtype: torch.dtype) -> dict[str, Any]:
    """What common.pt holds: `args`, no iteration yet, and nothing to resume an optimizer from."""
    return {
        "args": megatron_arguments(hf, shape, dtype),
        "checkpoint_version": CHECKPOINT_VERSION,
        "iteration": 0,
        "content_metadata": {"non_homogeneous_layers": False, "singleton_local_shards": False},
    }


def megatron_arguments(hf: Mapping[str, Any], shape: ModelShape, dtype: torch.dtype) -> Namespace:
    """Megatron-LM's arguments of a model, as `--use-checkpoint-args` takes them."""
    rope, length = rope_parameters(hf), int(hf.get("max_position_embeddings", 4096))
    scaled = rope["rope_type"] == "llama3"
    return Namespace(
        num_layers=shape.num_layers,
        hidden_size=shape.hidden_size,
        ffn_hidden_size=shape.ffn_hidden_size,
        num_attention_heads=shape.num_heads,
        group_query_attention=shape.num_kv_heads != shape.num_heads,
        num_query_groups=shape.num_kv_heads,
        kv_channels=shape.head_dim,
        seq_length=length,
        max_position_embeddings=length,
        position_embedding_type="rope",
        add_position_embedding=False,
        use_rotary_position_embeddings=True,
        rotary_base=int(rope["rope_theta"]),
        rotary_percent=1.0,
        rotary_interleaved=False,
        rotary_seq_len_interpolation_factor=(
            int(rope["factor"]) if rope["rope_type"] == "linear" else None
        ),
        use_rope_scaling=scaled,
        rope_scaling_factor=float(rope["factor"]) if scaled else 8.0,
        add_bias_linear=False,
        add_qkv_bias=shape.qkv_bias,
        swiglu=True,
        squared_relu=False,
        openai_gelu=False,
        normalization="RMSNorm",
        norm_epsilon=float(hf.get("rms_norm_eps", 1e-6)),
        apply_layernorm_1p=False,
        qk_layernorm=shape.qk_norm,
        attention_dropout=0.0,
        hidden_dropout=0.0,
        untie_embeddings_and_output_weights=not shape.tied,
        vocab_size=shape.vocab_size,
        padded_vocab_size=shape.padded_vocab_size,
        make_vocab_size_divisible_by=VOCAB_MULTIPLE,
        tokenizer_type="HuggingFaceTokenizer",
        tokenizer_model="hf",
        tensor_model_parallel_size=1,
        pipeline_model_parallel_size=1,
        virtual_pipeline_model_parallel_size=None,
        expert_model_parallel_size=1,
        expert_tensor_parallel_size=1,
        bf16=dtype == torch.bfloat16,
        fp16=dtype == torch.float16,
        params_dtype=dtype,
        ckpt_format="torch_dist",
        use_dist_ckpt=True,
        transformer_impl="transformer_engine",
        iteration=0,
        consumed_train_samples=0,
        consumed_valid_samples=0,
        skipped_train_samples=0,
        **_expert_arguments(hf, shape),
    )


def _expert_arguments(hf: Mapping[str, Any], shape: ModelShape) -> dict[str, Any]:
    if not shape.num_experts:
        return {"num_experts": None}
    return {
        "num_experts": shape.num_experts,
        "moe_ffn_hidden_size": shape.expert_ffn_size,
        "moe_router_topk": int(hf.get("num_experts_per_tok", 2)),
        "moe_router_pre_softmax": not hf.get("norm_topk_prob", shape.family == "mixtral"),
        "moe_router_load_balancing_type": "none",
        "moe_aux_loss_coeff": 0.0,
        "moe_layer_freq": 1,
        "moe_grouped_gemm": True,
        "moe_token_dispatcher_type": "alltoall",
    }

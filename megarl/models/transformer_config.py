"""Hugging Face config -> Megatron-Core TransformerConfig, for the decoder families."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.transformer import TransformerConfig

from megarl.errors import ConfigError
from megarl.layout.rules import ModelShape
from megarl.mesh.layout import MeshLayout

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def torch_dtype(name: str, key: str = "model.dtype") -> torch.dtype:
    """The torch type of a setting; raises ConfigError with the known names."""
    if name not in DTYPES:
        raise ConfigError(f"{key} is {name!r}; known: {', '.join(DTYPES)}")
    return DTYPES[name]


def _leave(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


def transformer_config(
    hf: Mapping[str, Any],
    shape: ModelShape,
    layout: MeshLayout,
    dtype: torch.dtype,
    recompute_granularity: str | None = None,
) -> TransformerConfig:
    """What Megatron-Core builds a layer stack of `shape` from, on one role's mesh.

    Weights are loaded afterwards, so nothing is initialised; dropout is 0. Raises ConfigError
    for an activation that is not SiLU.
    """
    if hf.get("hidden_act", "silu") not in ("silu", "swish"):
        raise ConfigError(f"hidden_act is {hf['hidden_act']!r}; only silu is known")
    interleaved = layout.vpp > 1
    recompute: dict[str, Any] = {}
    if recompute_granularity == "full":
        recompute = {"recompute_method": "uniform", "recompute_num_layers": 1}
    experts = _expert_settings(hf, shape, layout) if shape.num_experts else {}
    return TransformerConfig(
        num_layers=shape.num_layers,
        hidden_size=shape.hidden_size,
        num_attention_heads=shape.num_heads,
        num_query_groups=shape.num_kv_heads,
        kv_channels=shape.head_dim,
        ffn_hidden_size=shape.ffn_hidden_size,
        normalization="RMSNorm",
        layernorm_epsilon=float(hf.get("rms_norm_eps", 1e-6)),
        gated_linear_unit=True,
        activation_func=F.silu,
        add_bias_linear=False,
        add_qkv_bias=shape.qkv_bias,
        qk_layernorm=shape.qk_norm,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        tensor_model_parallel_size=layout.tp,
        pipeline_model_parallel_size=layout.pp,
        virtual_pipeline_model_parallel_size=layout.vpp if interleaved else None,
        context_parallel_size=layout.cp,
        sequence_parallel=layout.sequence_parallel and layout.tp > 1,
        num_layers_in_first_pipeline_stage=layout.first_stage_layers,
        num_layers_in_last_pipeline_stage=layout.last_stage_layers,
        pipeline_dtype=dtype,
        params_dtype=dtype,
        bf16=dtype == torch.bfloat16,
        deterministic_mode=torch.are_deterministic_algorithms_enabled(),
        # Initialisation marks which parameters are tensor-parallel; the values are loaded later.
        perform_initialization=True,
        init_method=_leave,
        output_layer_init_method=_leave,
        masked_softmax_fusion=False,
        bias_activation_fusion=False,
        bias_dropout_fusion=False,
        gradient_accumulation_fusion=False,
        persist_layer_norm=False,
        apply_rope_fusion=False,
        variable_seq_lengths=layout.pp > 1,
        moe_token_dispatcher_type="alltoall",
        # Batched p2p between the same two peers cross-matches under the interleaved schedule.
        batch_p2p_comm=not interleaved,
        overlap_p2p_comm=interleaved,
        recompute_granularity=recompute_granularity,
        **recompute,
        **experts,
    )


def _expert_settings(
    hf: Mapping[str, Any], shape: ModelShape, layout: MeshLayout
) -> dict[str, Any]:
    """Experts as Hugging Face's models route to them: a softmax over all, then the k largest.

    Where the k weights are then scaled to sum to 1 (Mixtral always, Qwen3-MoE by norm_topk_prob),
    that is a softmax over the k largest alone.
    """
    return {
        "num_moe_experts": shape.num_experts,
        "moe_ffn_hidden_size": shape.expert_ffn_size,
        "expert_model_parallel_size": layout.ep,
        "expert_tensor_parallel_size": layout.etp,
        "moe_router_topk": int(hf.get("num_experts_per_tok", 2)),
        "moe_router_pre_softmax": not hf.get("norm_topk_prob", shape.family == "mixtral"),
        "moe_router_load_balancing_type": "none",
        "moe_aux_loss_coeff": 0.0,
    }

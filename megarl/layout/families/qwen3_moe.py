"""Qwen3-MoE: Qwen3's attention, and experts in every layer."""

from megarl.layout.families import blocks
from megarl.layout.families.rule import Family

FAMILY = Family(
    name="qwen3_moe",
    architectures=("Qwen3MoeForCausalLM", "Qwen3MoeForSequenceClassification"),
    rules=(
        blocks.EMBEDDING,
        blocks.INPUT_NORM,
        blocks.QKV,
        blocks.Q_NORM,
        blocks.K_NORM,
        blocks.O_PROJ,
        *blocks.expert_rules(
            "mlp.",
            router="gate.weight",
            gate="experts.{e}.gate_proj.weight",
            up="experts.{e}.up_proj.weight",
            down="experts.{e}.down_proj.weight",
        ),
        blocks.FINAL_NORM,
        blocks.LM_HEAD,
    ),
    default_kv_heads=4,
    experts_keys=("num_experts", "num_local_experts"),
    expert_ffn_key="moe_intermediate_size",
    whole_ends_in_vllm=True,
)

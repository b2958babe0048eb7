"""Mixtral: Mistral's attention, and experts in every layer."""

from megarl.layout.families import blocks
from megarl.layout.families.rule import Family

FAMILY = Family(
    name="mixtral",
    architectures=("MixtralForCausalLM", "MixtralForSequenceClassification"),
    rules=(
        blocks.EMBEDDING,
        blocks.INPUT_NORM,
        blocks.QKV,
        blocks.O_PROJ,
        *blocks.expert_rules(
            "block_sparse_moe.",
            router="gate.weight",
            gate="experts.{e}.w1.weight",
            up="experts.{e}.w3.weight",
            down="experts.{e}.w2.weight",
        ),
        blocks.FINAL_NORM,
        blocks.LM_HEAD,
    ),
    default_kv_heads=8,
    experts_keys=("num_local_experts",),
    whole_ends_in_vllm=True,
)

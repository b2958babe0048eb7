"""Qwen3: norms on queries and keys, a head size of its own."""

from megarl.layout.families import blocks
from megarl.layout.families.rule import Family

FAMILY = Family(
    name="qwen3",
    architectures=("Qwen3ForCausalLM", "Qwen3ForSequenceClassification"),
    rules=(
        blocks.EMBEDDING,
        blocks.INPUT_NORM,
        blocks.QKV,
        blocks.Q_NORM,
        blocks.K_NORM,
        blocks.O_PROJ,
        blocks.MLP_NORM,
        blocks.GATE_UP,
        blocks.DOWN_PROJ,
        blocks.FINAL_NORM,
        blocks.LM_HEAD,
    ),
    default_kv_heads=32,
    default_head_dim=128,
)

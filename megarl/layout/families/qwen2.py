"""Qwen2: biases on queries, keys and values."""

from megarl.layout.families import blocks
from megarl.layout.families.rule import Family

FAMILY = Family(
    name="qwen2",
    architectures=("Qwen2ForCausalLM", "Qwen2ForSequenceClassification"),
    rules=(
        blocks.EMBEDDING,
        blocks.INPUT_NORM,
        blocks.QKV,
        blocks.QKV_BIAS,
        blocks.O_PROJ,
        blocks.MLP_NORM,
        blocks.GATE_UP,
        blocks.DOWN_PROJ,
        blocks.FINAL_NORM,
        blocks.LM_HEAD,
    ),
    default_kv_heads=32,
)

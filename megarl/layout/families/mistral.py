"""Mistral: Llama's tensors, with defaults of its own."""

from megarl.layout.families import blocks
from megarl.layout.families.rule import Family

FAMILY = Family(
    name="mistral",
    architectures=("MistralForCausalLM", "MistralForSequenceClassification"),
    rules=(
        blocks.EMBEDDING,
        blocks.INPUT_NORM,
        blocks.QKV,
        blocks.O_PROJ,
        blocks.MLP_NORM,
        blocks.GATE_UP,
        blocks.DOWN_PROJ,
        blocks.FINAL_NORM,
        blocks.LM_HEAD,
    ),
    default_kv_heads=8,
)

"""Llama: no biases, no norms on queries and keys."""

from megarl.layout.families import blocks
from megarl.layout.families.rule import Family

FAMILY = Family(
    name="llama",
    architectures=("LlamaForCausalLM", "LlamaForSequenceClassification"),
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
)

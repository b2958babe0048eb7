"""The model families, each one table of rules in a file of its own."""

from megarl.layout.families import llama, mistral, mixtral, qwen2, qwen3, qwen3_moe

FAMILIES = (
    llama.FAMILY,
    mistral.FAMILY,
    mixtral.FAMILY,
    qwen2.FAMILY,
    qwen3.FAMILY,
    qwen3_moe.FAMILY,
)
"""Every known family."""

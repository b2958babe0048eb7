"""The model families, each one table of rules in a file of its own."""

from megarl.layout.families import llama, mistral, qwen2, qwen3

FAMILIES = (llama.FAMILY, mistral.FAMILY, qwen2.FAMILY, qwen3.FAMILY)
"""Every known family."""

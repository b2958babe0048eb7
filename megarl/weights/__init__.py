"""Hugging Face safetensors to and from Megatron shards, box by box."""

"""Hugging Face folders to Megatron's torch_dist checkpoints and back, streamed and checked."""

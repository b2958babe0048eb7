"""Rollout engines behind one protocol: in-process vLLM, transformers, scripted."""

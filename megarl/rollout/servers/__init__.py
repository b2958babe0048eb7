"""Rollouts from vLLM servers: addresses, messages, routing, the client, the engine on top of it."""

"""Megatron-Core models of the roles: config, layer spec, heads, schedule and optimizer."""

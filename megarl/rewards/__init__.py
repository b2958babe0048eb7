"""Rewards: the protocol, the built-in verifiers, and loading a user's own."""

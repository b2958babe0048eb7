"""Checkpoints of a run, as folders on disk."""

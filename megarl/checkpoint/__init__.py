"""Checkpoints of a run: every trained role's weights and optimizer, and the state of the run."""

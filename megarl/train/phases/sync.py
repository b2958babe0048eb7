"""The way of the actor's weights to the rollout engines."""

from __future__ import annotations

from megarl.train.run import Run


def sync_weights(run: Run) -> None:
    """Reshard the actor's weights into the rollout engines, and prove that they arrived."""
    with run.verb("sync_weights"):
        run.note_sync(run.weight_sync.run())

"""The training loop, whole."""

from __future__ import annotations

from megarl.train.checkpoints import Checkpoints
from megarl.train.phases import compute_advantages, generate, score, sync_weights, update
from megarl.train.run import Run


def train(run: Run) -> None:
    """Train until the last step; every rank runs the same lines."""
    checkpoints = Checkpoints(run)
    checkpoints.resume()
    sync_weights(run)
    run.evaluate_if_due()
    for step in run.steps():
        samples = generate(run, run.next_prompts())
        scored = score(run, samples)
        batch = compute_advantages(run, scored)
        metrics = update(run, batch)
        sync_weights(run)
        run.finish_step(step, metrics)
        checkpoints.save_if_due()

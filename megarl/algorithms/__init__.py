"""Pure tensor maths of reinforcement learning: rewards, advantages, losses, KL, statistics.

Per-token tensors are float [B, R] with a bool mask [B, R]: B rows, R response tokens, right-padded;
the mask may have holes (tool output). Whatever stands outside it, NaN included, never reaches a
result or a gradient. Nothing here knows of ranks: what has to be global comes in as a number, what
has to be summed goes out as a sum.

In the order of a step: `shaping` (scores), `advantages` (a package: estimators by name),
`corrections` (of the engine's log-probs), `policy` (a package: losses by name), `losses` (weights
and denominators, value loss), `kl`, `entropy`, `stats` (sums for metrics), `evaluation` and
`eval_metrics`. Below them: `registry`, `groups`, `logprobs`, `masked`.
"""

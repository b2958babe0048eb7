"""Pure tensor maths of reinforcement learning: masked means, advantages, losses, KL.

Per-token tensors are float [B, R] with a bool mask [B, R]: B rows, R response tokens, right-padded.
Whatever stands outside the mask, NaN included, never reaches a result or a gradient. Nothing here
knows of ranks: what has to be global comes in as a number, what has to be summed goes out as a sum.
"""

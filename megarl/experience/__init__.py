"""Finished samples on their way to training: what one is, and the buffer that keeps them."""

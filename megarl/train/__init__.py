"""The driver loop, its phases, and the construction of a run."""

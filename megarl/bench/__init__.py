"""Benchmarks: `megarl bench NAME`."""

"""What a person sees of a run: metrics, progress, timings, logs, and the report at its end."""

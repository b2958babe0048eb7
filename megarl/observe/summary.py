"""A run in a few figures: read from its metrics, kept as summary.json, shown as a table."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megarl.observe.metrics_file import read_metrics

SHOWN_SECONDS = 1e-4
"""Phases that took less on the average did not run: a role is absent, or its work not needed."""


def summarize(metrics_path: Path, accuracy: Mapping[int, float]) -> dict[str, Any]:
    """Figures of the whole run: first and last step, means, totals and the largest difference.

    accuracy: step -> held-out accuracy, 0 before the first; empty where nothing tells right from
    wrong.
    """
    history = sorted(read_metrics(metrics_path).items())
    steps = [m for _, m in history if "reward_mean" in m]
    first, last = steps[0], steps[-1]
    rewards = [m["eval/reward_mean"] for _, m in history if "eval/reward_mean" in m]
    sampled = [m for _, m in history if "eval/sampled_accuracy" in m]
    names = ("reward_mean", "actor/ref_kl", "actor/entropy", "response_length/mean")
    diff = "train_rollout_logprob_abs_diff"
    timing = sorted({name for m in steps for name in m if name.startswith("timing_s/")})
    reached = {str(step): value for step, value in sorted(accuracy.items())}
    return {
        "steps": len(steps),
        "accuracy": reached,
        "accuracy_first": next(iter(reached.values()), None),
        "accuracy_last": next(reversed(reached.values()), None),
        "heldout_reward": rewards[:1] + rewards[-1:],
        "heldout_first": _of_samples(sampled[0]) if sampled else {},
        "heldout_last": _of_samples(sampled[-1]) if sampled else {},
        "first": {name: first[name] for name in names if name in first},
        "last": {name: last[name] for name in names if name in last},
        "mean": {
            name: sum(m.get(name, 0.0) for m in steps) / len(steps)
            for name in (*timing, "perf/tokens_per_s", "perf/generated_tokens_per_s")
        },
        "reshard_bytes_received": last["reshard/bytes_received"],
        "reshard_bytes_lower_bound": last["reshard/bytes_lower_bound"],
        "logprob_diff_max": max(m.get(f"{diff}/max", 0.0) for m in steps),
        "logprob_diff_mean": max(m.get(f"{diff}/mean", 0.0) for m in steps),
        "peak_memory_gib": max(m["perf/peak_memory_gib"] for m in steps),
        "tensorboard": str(metrics_path.parent),
    }


def table_rows(summary: Mapping[str, Any]) -> dict[str, tuple[float | str, ...]]:
    """A summary as rows of (first, last)."""
    rows: dict[str, tuple[float | str, ...]] = {}
    if summary["accuracy_first"] is not None:
        rows["held-out accuracy"] = (summary["accuracy_first"], summary["accuracy_last"])
    if summary["heldout_reward"]:
        rows["held-out reward"] = tuple(summary["heldout_reward"])
    for name, value in summary["heldout_last"].items():
        rows[f"held-out {name}"] = (summary["heldout_first"].get(name, ""), value)
    for name, value in summary["last"].items():
        rows[name] = (summary["first"].get(name, ""), value)
    for name, value in summary["mean"].items():
        if value > SHOWN_SECONDS:
            rows[f"{name} (mean)"] = ("", value)
    received, bound = summary["reshard_bytes_received"], summary["reshard_bytes_lower_bound"]
    ratio = received / bound if bound else 1.0
    rows["reshard bytes / lower bound"] = (f"{received:,.0f} / {bound:,.0f}", f"{ratio:.3f}")
    rows["largest train/rollout log-prob difference"] = ("", f"{summary['logprob_diff_max']:.2e}")
    rows["peak memory, all ranks (GiB)"] = ("", summary["peak_memory_gib"])
    rows["TensorBoard"] = ("", summary["tensorboard"])
    return rows


def _of_samples(metrics: Mapping[str, float]) -> dict[str, float]:
    """pass@k and maj@n of an evaluation, over all sources."""
    names = (name.removeprefix("eval/") for name in metrics if name.startswith("eval/"))
    return {name: metrics[f"eval/{name}"] for name in names if "@" in name and "/" not in name}

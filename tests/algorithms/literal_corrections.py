"""Corrections as their sources write them, row by row and token by token."""

from __future__ import annotations

import math


def correct(old, rollout, options):
    """(weights, kept, sums) of lists over rows of lists over tokens."""
    weights, kept = [], []
    sums = dict.fromkeys(
        ("tokens", "ratio", "ratio_squared", "weight", "truncated", "masked", "gen_kl_error"), 0.0
    )
    largest = 0.0
    for new_row, old_row in zip(old, rollout, strict=True):
        ratios = [math.exp(a - b) for a, b in zip(new_row, old_row, strict=True)]
        product = math.prod(ratios)
        used = [product] * len(ratios) if options.rollout_is == "sequence" else ratios
        row, cut = [], []
        for ratio in used:
            weight, was_cut = _weight(ratio, options)
            row.append(weight)
            cut.append(was_cut)
        keep = _kept(ratios, product, options)
        row = [w if k else 0.0 for w, k in zip(row, keep, strict=True)]
        weights.append(row)
        kept.append(keep)
        largest = max([largest, *used])
        sums["tokens"] += len(ratios)
        sums["ratio"] += sum(used)
        sums["ratio_squared"] += sum(r * r for r in used)
        sums["weight"] += sum(row)
        sums["truncated"] += sum(c and k for c, k in zip(cut, keep, strict=True))
        sums["masked"] += sum(w == 0 for w in row)
        # KL(rollout || trainer) by Schulman's k3, of the rollout's samples
        sums["gen_kl_error"] += sum(r - 1 - math.log(r) for r in ratios)
    return weights, kept, sums, largest


def _weight(ratio, options):
    if options.rollout_is is None:
        return 1.0, False
    high, low = options.rollout_is_threshold, options.rollout_is_threshold_lower
    if options.rollout_is_mode == "mask":
        low = 1 / high if low is None else low
        return (ratio if low <= ratio <= high else 0.0), False
    low = 0.0 if low is None else low
    return min(max(ratio, low), high), not low <= ratio <= high


def _kept(ratios, product, options):
    high, low = options.rollout_rs_threshold, options.rollout_rs_threshold_lower
    low = 1 / high if low is None else low
    keep = [True] * len(ratios)
    if options.rollout_rs == "token":
        keep = [low <= r <= high for r in ratios]
    elif options.rollout_rs == "sequence":
        keep = [low <= product <= high] * len(ratios)
    elif options.rollout_rs == "geometric":
        keep = [low <= product ** (1 / len(ratios)) <= high for _ in ratios]
    veto = options.rollout_token_veto_threshold
    if veto is not None and any(r < veto for r in ratios):
        keep = [False] * len(ratios)
    return keep

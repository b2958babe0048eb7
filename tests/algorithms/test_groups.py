"""Group statistics against loops; the estimators rest on them."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megarl.algorithms.groups import Groups


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(-3, 3), st.sampled_from([-3, 0, 7, 12])), max_size=12))
def test_statistics_of_groups(rows):
    x = torch.tensor([float(value) for value, _ in rows])
    groups = Groups(torch.tensor([number for _, number in rows], dtype=torch.long))
    found = {
        "sum": groups.sum(x),
        "mean": groups.mean(x),
        "least": groups.least(x),
        "greatest": groups.greatest(x),
        "differ": groups.differ(x),
        "ranks": groups.ranks(x),
    }
    assert groups.size.dtype == found["sum"].dtype == torch.float64
    for i, (value, number) in enumerate(rows):
        those = [v for v, n in rows if n == number]
        before = [
            j
            for j, (v, n) in enumerate(rows)
            if n == number and (v < value or (v == value and j < i))
        ]
        want = {
            "sum": sum(those),
            "mean": sum(those) / len(those),
            "least": min(those),
            "greatest": max(those),
            "differ": len(set(those)) > 1,
            "ranks": len(before),
        }
        assert {name: result[i].item() for name, result in found.items()} == want
        assert groups.size[i] == len(those)

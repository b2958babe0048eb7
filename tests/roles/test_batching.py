"""Mini- and micro-batches: every row once, groups whole, the same for every number of slices."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megarl.roles.batching import (
    MicroBatchLimit,
    cut_micro_batches,
    deal_mini_batches,
    slice_of_rows,
)


@given(st.integers(1, 12), st.integers(1, 4), st.integers(1, 5), st.integers(0, 99))
def test_mini_batches_hold_every_row_once_and_groups_whole(
    groups: int, size: int, groups_per_batch: int, seed: int
) -> None:
    group = [row // size for row in range(groups * size)]
    batches = deal_mini_batches(group, groups_per_batch * size, seed)
    assert sorted(row for rows in batches for row in rows) == list(range(len(group)))
    assert all(len(rows) <= groups_per_batch * size for rows in batches)
    for rows in batches:
        assert set(Counter(group[row] for row in rows).values()) == {size}


@given(
    st.lists(st.integers(1, 50), min_size=1, max_size=24),
    st.integers(1, 4),
    st.integers(1, 6),
    st.integers(1, 4),
)
def test_micro_batches_of_all_slices_hold_every_row_once(
    lengths: list[int], slices: int, limit: int, multiple: int
) -> None:
    group = list(range(len(lengths)))
    owner = slice_of_rows([group], group, lengths, slices)
    cut = cut_micro_batches(group, lengths, owner, slices, MicroBatchLimit(limit, None), multiple)
    assert {len(batches) for batches in cut} == {len(cut[0])} and len(cut[0]) % multiple == 0
    for index, batches in enumerate(cut):
        rows = sorted(row for batch in batches for row in batch)
        assert rows == [row for row in group if owner[row] == index]
        assert all(len(batch) <= limit for batch in batches)


def test_slices_get_equal_tokens_and_groups_stay_together() -> None:
    group = [row // 2 for row in range(16)]
    lengths = [5 + 3 * (row % 5) for row in range(16)]
    owner = slice_of_rows([range(16)], group, lengths, 4)
    assert all(owner[row] == owner[row ^ 1] for row in range(16))
    load = Counter[int]()
    for row, index in enumerate(owner):
        load[index] += lengths[row]
    assert max(load.values()) <= 1.2 * sum(lengths) / 4


def test_token_budget_bounds_the_padded_size() -> None:
    lengths = [3, 9, 4, 8, 8, 2]
    cut = cut_micro_batches(range(6), lengths, [0] * 6, 1, MicroBatchLimit(None, 18), 1)[0]
    assert all(len(rows) * max(lengths[row] for row in rows) <= 18 for rows in cut)
    with pytest.raises(Exception, match="max_tokens"):
        cut_micro_batches(range(6), lengths, [0] * 6, 1, MicroBatchLimit(None, 5), 1)

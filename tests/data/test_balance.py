"""Balance: nothing lost, limits kept, the same answer everywhere, and good enough to matter."""

from __future__ import annotations

import random
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megarl.data.balance import assign_groups, equalize, micro_batches, split_to
from megarl.errors import ConfigError

LENGTHS = st.lists(st.integers(0, 50), max_size=30)


def loads_of(lengths, owners, num_owners):
    return [
        sum(n for n, o in zip(lengths, owners, strict=True) if o == k) for k in range(num_owners)
    ]


@settings(deadline=None)
@given(lengths=LENGTHS, num_owners=st.integers(1, 6))
def test_owners_get_equal_counts(lengths, num_owners):
    owners = assign_groups(lengths, num_owners)
    counts = [owners.count(owner) for owner in range(num_owners)]
    assert len(owners) == len(lengths) == sum(counts)
    assert max(counts) - min(counts) <= 1
    assert owners == assign_groups(list(lengths), num_owners)


def test_tokens_are_balanced():
    rng = random.Random(0)
    lengths = [int(rng.lognormvariate(6, 1)) for _ in range(256)]
    loads = loads_of(lengths, assign_groups(lengths, 8), 8)
    assert max(loads) <= 1.001 * sum(loads) / 8


@pytest.mark.parametrize("seed", range(5))
def test_two_owners_come_near_the_optimum(seed):
    rng = random.Random(seed)
    lengths = [rng.randint(1, 100) for _ in range(10)]
    best = min(abs(sum(lengths) - 2 * sum(half)) for half in combinations(lengths, 5))
    loads = loads_of(lengths, assign_groups(lengths, 2), 2)
    assert abs(loads[0] - loads[1]) <= best + 0.04 * sum(lengths)


def test_groups_by_hand():
    assert loads_of([4, 9, 5, 7], assign_groups([4, 9, 5, 7], 2), 2) in ([13, 12], [12, 13])
    assert assign_groups([1, 1, 1, 1], 2) == [0, 1, 0, 1]
    with pytest.raises(ConfigError, match="0 owners"):
        assign_groups([1], 0)


@settings(deadline=None)
@given(lengths=LENGTHS, size=st.integers(1, 7))
def test_fixed_micro_batches_hold_each_row_once(lengths, size):
    batches = micro_batches(lengths, micro_batch_size=size)
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    assert len(batches) == -(-len(lengths) // size)
    assert all(len(batch) <= size for batch in batches)


@settings(deadline=None)
@given(lengths=LENGTHS, extra=st.integers(0, 100))
def test_dynamic_micro_batches_keep_the_padded_limit(lengths, extra):
    limit = max([1, *lengths]) + extra
    batches = micro_batches(lengths, max_tokens=limit)
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    for batch in batches:
        longest = max(lengths[row] for row in batch)
        assert longest * len(batch) <= limit


def test_micro_batches_by_hand():
    lengths = [3, 10, 4, 5]
    assert micro_batches(lengths, max_tokens=10) == [[1], [3, 2], [0]]
    assert micro_batches(lengths, micro_batch_size=3) == [[1, 3, 2], [0]]
    assert micro_batches([], max_tokens=10) == []


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({}, "not both or none: they are None and None"),
        ({"micro_batch_size": 1, "max_tokens": 9}, "not both or none"),
        ({"micro_batch_size": 0}, "micro_batch_size is 0"),
        ({"max_tokens": 4}, "max_tokens_per_gpu is 4 and sample 1 has 5 tokens"),
    ],
)
def test_bad_limits_are_named(limits, message):
    with pytest.raises(ConfigError, match=message):
        micro_batches([3, 5], **limits)


def test_equalize_takes_the_largest_and_rounds_up():
    assert equalize([3, 5, 4]) == 5
    assert equalize([3, 5, 4], multiple_of=4) == 8
    assert equalize([8], multiple_of=4) == 8
    assert equalize([]) == 0


@settings(deadline=None)
@given(lengths=LENGTHS, more=st.integers(0, 9))
def test_split_to_reaches_the_count_and_keeps_the_rows(lengths, more):
    batches = micro_batches(lengths, micro_batch_size=4)
    out = split_to(batches, lengths, len(batches) + more)
    assert len(out) == len(batches) + more
    assert sorted(row for batch in out for row in batch) == list(range(len(lengths)))
    # Empty ones only where no micro-batch is left to halve.
    assert all(out) or all(len(batch) <= 1 for batch in out)


def test_split_to_cannot_merge():
    with pytest.raises(ConfigError, match="2 micro-batches cannot be split into 1"):
        split_to([[0], [1]], [1, 1], 1)

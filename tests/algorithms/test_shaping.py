"""Reward shaping against loops and by hand."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ragged import F64

from megarl.algorithms.shaping import (
    RunningNorm,
    clip_scores,
    cosine_length_reward,
    group_length_reward,
    informative_groups,
    overlong_filter,
    overlong_penalty,
    score_sums,
)
from megarl.errors import ConfigError


def test_the_soft_overlong_punishment_is_daposs():
    # L_max 20, cache 8: 0 to 12, then a line, -1 from 20 on
    lengths = [0, 11, 12, 14, 16, 20, 25]
    got = overlong_penalty(torch.tensor(lengths), 20, 8).tolist()
    want = []
    for length in lengths:
        if length <= 12:
            want.append(0.0)
        elif length <= 20:
            want.append((12 - length) / 8)
        else:
            want.append(-1.0)
    assert got == pytest.approx(want)
    for buffer in (0, 21):
        with pytest.raises(ConfigError, match=f"buffer is {buffer} tokens.*longest response 20"):
            overlong_penalty(torch.tensor([1]), 20, buffer)


def test_overlong_filtering_takes_out_what_was_cut_off():
    mask = torch.tensor([[True, False, True], [True, True, False]])
    got = overlong_filter(mask, torch.tensor([True, False]))
    assert got.tolist() == [[True, False, True], [False] * 3]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from([0.0, 0.1, 1.0]), st.integers(-2, 2)), max_size=10))
def test_informative_groups_have_two_different_scores(rows):
    scores = torch.tensor([score for score, _ in rows])
    group = torch.tensor([number for _, number in rows], dtype=torch.long)
    want = [len({s for s, g in rows if g == number}) > 1 for _, number in rows]
    assert informative_groups(scores, group).tolist() == want
    assert informative_groups(scores > 0.5, group).dtype == torch.bool


def test_scores_are_clipped():
    assert clip_scores(torch.tensor([-3.0, 0.5, 9.0]), -1, 1).tolist() == [-1.0, 0.5, 1.0]
    with pytest.raises(ConfigError, match="above 1 and below 1"):
        clip_scores(torch.zeros(1), 1, 1)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9), st.booleans(), st.integers(0, 2)), max_size=10))
def test_length_rewards_within_groups_are_kimis(rows):
    want = []
    for length, right, number in rows:
        lengths = [n for n, _, g in rows if g == number]
        least, most = min(lengths), max(lengths)
        value = 0.5 - (length - least) / (most - least) if most > least else 0.0
        want.append(value if right else min(0.0, value))
    columns = [[row[k] for row in rows] for k in range(3)]
    got = group_length_reward(
        torch.tensor(columns[0], dtype=torch.long),
        torch.tensor(columns[1], dtype=torch.bool),
        torch.tensor(columns[2], dtype=torch.long),
    )
    assert got.tolist() == pytest.approx(want, abs=1e-6)


def test_the_cosine_reward_by_hand():
    lengths = torch.tensor([0, 50, 100, 0, 50, 120])
    right = torch.tensor([True, True, True, False, False, False])
    got = cosine_length_reward(
        lengths, right, 100,
        right_short=2.0, right_long=1.0, wrong_short=-10.0, wrong_long=0.0, exceeded=-7.0,
    )  # fmt: skip
    assert got.tolist() == pytest.approx([2.0, 1.5, -7.0, -10.0, -5.0, -7.0], abs=1e-5)
    # between the ends: eta_min + (eta_max - eta_min) (1 + cos(t pi / T)) / 2
    middle = cosine_length_reward(torch.tensor([25]), torch.tensor([True]), 100).item()
    assert middle == pytest.approx(1 + 0.5 * (1 + math.cos(math.pi / 4)), abs=1e-6)
    with pytest.raises(ConfigError, match="max_length is 0"):
        cosine_length_reward(lengths, right, 0)


def test_running_moments_are_those_of_all_scores_so_far_for_any_split():
    generator = torch.Generator().manual_seed(0)
    scores = 1000 + 3 * torch.randn(57, dtype=F64, generator=generator)
    for split in ([57], [1] * 57, [20, 0, 30, 7]):
        norm = RunningNorm()
        for part in scores.split(split):
            # as two ranks
            norm.update(score_sums(part[::2]) + score_sums(part[1::2]))
        assert norm.count == 57
        assert norm.mean == pytest.approx(scores.mean().item(), abs=1e-9)
        assert norm.std == pytest.approx(scores.std().item(), rel=1e-6)
    white = norm.apply(scores)
    assert white.mean().abs() < 1e-9 and white.std().item() == pytest.approx(1, rel=1e-6)
    assert norm.apply(scores, centre=False).min() > 0


def test_running_moments_resume_from_plain_numbers():
    first, second = RunningNorm(), RunningNorm()
    first.update(score_sums(torch.tensor([1.0, 2.0, 4.0])))
    state = first.state_dict()
    assert all(type(value) is float for value in state.values())
    second.load_state_dict(state)
    for norm in (first, second):
        norm.update(score_sums(torch.tensor([8.0])))
    assert first.state_dict() == second.state_dict() and first.mean == 3.75


@pytest.mark.parametrize("scores", [[], [5.0], [5.0, 5.0, 5.0]])
def test_without_a_spread_scores_are_only_centred(scores):
    norm, given_scores = RunningNorm(), torch.tensor(scores)
    norm.update(score_sums(given_scores))
    assert (norm.apply(given_scores) == 0).all() and norm.std == 0


def test_no_rows():
    none, numbers = torch.zeros(0), torch.zeros(0, dtype=torch.long)
    assert overlong_penalty(numbers, 5, 2).shape == (0,)
    assert informative_groups(none, numbers).shape == (0,)
    assert group_length_reward(numbers, none.bool(), numbers).shape == (0,)
    assert cosine_length_reward(numbers, none.bool(), 5).shape == (0,)

"""Estimators against literal restatements of their formulas, and cases worked out by hand."""

from __future__ import annotations

import math

import literal_advantages as literal
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ragged import F64, Batch, ragged, spread_over

from megarl.algorithms.advantages import (
    AdvantageInputs,
    compute_advantages,
    estimator,
    estimator_names,
    gae,
    grpo,
    opo,
    passk,
    process,
    rewards_to_go,
    rloo,
    sequence_rewards,
    step_advantages,
    token_level_rewards,
)

GAMMA, LAM = 0.9, 0.8


def inputs_of(batch: Batch) -> AdvantageInputs:
    return AdvantageInputs(
        mask=batch.mask,
        rewards=batch.rewards,
        scores=batch.scores,
        group=batch.group,
        values=batch.values,
        gamma=GAMMA,
        lam=LAM,
        baselines=batch.baselines,
        steps=batch.steps,
    )


def restated(name: str, batch: Batch) -> list[list[float]]:
    """Advantages of the tokens inside the mask, by the formula called `name`."""
    rewards, values, steps = (batch.inside(x) for x in (batch.rewards, batch.values, batch.steps))
    scores, group = batch.scores.tolist(), batch.group.tolist()
    lengths = [len(row) for row in rewards]
    match name:
        case "gae":
            rows = zip(rewards, values, strict=True)
            return [literal.gae(r, v, GAMMA, LAM) for r, v in rows]
        case "grpo_process":
            return literal.grpo_process(rewards, steps, group)
        case "reinforce_plus_plus":
            return literal.reinforce_plus_plus(rewards, GAMMA)
        case "remax":
            return literal.remax(rewards, batch.baselines.tolist())
    return getattr(literal, name)(scores, group, lengths)


@pytest.mark.parametrize("name", estimator_names())
@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    rows=st.integers(1, 14),
    width=st.integers(1, 12),
    holes=st.booleans(),
)
def test_estimators_restate_their_formulas(name, seed, rows, width, holes):
    batch = ragged(seed, rows, width, holes=holes)
    want = spread_over(restated(name, batch), batch.mask)
    got, returns = step_advantages(name, inputs_of(batch))
    # A group's std near 0 magnifies rounding by 1 / 1e-6 at most; scores are on a grid.
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)
    assert got.dtype == F64 and (returns[~batch.mask] == 0).all()


@pytest.mark.parametrize("name", estimator_names())
def test_returns_are_what_a_critic_would_learn_or_the_advantages_before_whitening(name):
    batch = ragged(3)
    raw, returns = compute_advantages(name, inputs_of(batch))
    want = raw + batch.values.nan_to_num() if name == "gae" else raw
    torch.testing.assert_close(returns, torch.where(batch.mask, want, 0.0))


def test_gae_by_hand():
    # V = 1, 2; r = 0, 10; gamma 0.5, lam 0.5: delta = 0 + 1 - 1, 10 - 2; A = 0 + 0.25 * 8, 8
    mask = torch.tensor([[True, True]])
    got, returns = gae(torch.tensor([[0.0, 10.0]]), torch.tensor([[1.0, 2.0]]), mask, 0.5, 0.5)
    assert got.tolist() == [[2.0, 8.0]]
    assert returns.tolist() == [[3.0, 10.0]]


def test_gae_steps_over_holes_in_the_mask():
    mask = torch.tensor([[True, False, True]])
    rewards, values = torch.tensor([[1.0, 9.0, 2.0]]), torch.tensor([[3.0, 7.0, 5.0]])
    got, _ = gae(rewards, values, mask, 0.9, 0.8)
    dense, _ = gae(rewards[:, [0, 2]], values[:, [0, 2]], mask[:, [0, 2]], 0.9, 0.8)
    assert got[0, [0, 2]].tolist() == dense[0].tolist() and got[0, 1] == 0


@pytest.mark.parametrize("holes", [False, True])
def test_long_rows_and_several_chunks_agree_with_the_loop(holes, monkeypatch):
    """More tokens than a window of the scan, more rows than a chunk; the recursion itself."""
    monkeypatch.setattr("megarl.algorithms.masked.CHUNK", 5000)
    batch = ragged(1, rows=9, width=2000, holes=holes)
    advantages, carry, after = torch.zeros(9, 2000, dtype=F64), torch.zeros(9), torch.zeros(9)
    carry, after = carry.double(), after.double()
    for t in reversed(range(2000)):
        inside = batch.mask[:, t]
        delta = batch.rewards[:, t] + 0.999 * after - batch.values[:, t]
        carry = torch.where(inside, delta + 0.999 * 0.95 * carry, carry)
        after = torch.where(inside, batch.values[:, t], after)
        advantages[:, t] = torch.where(inside, carry, 0.0)
    got, _ = gae(batch.rewards, batch.values, batch.mask, 0.999, 0.95)
    torch.testing.assert_close(got, advantages, rtol=0, atol=1e-10)


def test_scores_of_a_group_by_hand():
    scores, group = torch.tensor([1.0, 0.0, 0.0, 1.0, 5.0]), torch.tensor([4, 4, 4, 4, 9])
    mask = torch.ones(5, 1, dtype=torch.bool)
    std = math.sqrt(1 / 3)
    got = grpo(scores, group, mask)[:, 0].tolist()
    assert got == pytest.approx([0.5 / std, -0.5 / std, -0.5 / std, 0.5 / std, 0.0], rel=1e-5)
    # others of the first: 0, 0, 1
    assert rloo(scores, group, mask)[0, 0].item() == pytest.approx(2 / 3)


def test_opo_weighs_by_length_by_hand():
    # lengths 1 and 3, scores 1 and 0: baseline 1/4, not 1/2
    mask = torch.tensor([[True, False, False], [True, True, True]])
    got = opo(torch.tensor([1.0, 0.0]), torch.tensor([0, 0]), mask)
    assert got.tolist() == [[0.75, 0.0, 0.0], [-0.25, -0.25, -0.25]]


def test_passk_rewards_the_best_alone_by_hand():
    scores = torch.tensor([0.25, 1.0, 0.5, 2.0, 2.0, 7.0])
    group = torch.tensor([0, 0, 0, 1, 1, 2])
    got = passk(scores, group, torch.ones(6, 1, dtype=torch.bool))[:, 0]
    assert got.tolist() == [0.0, 0.5, 0.0, 0.0, 0.0, 0.0]


def test_gpg_scales_by_the_share_with_a_signal_by_hand():
    # Of 4 responses, 2 have a signal: 0.5 * 4 / 2.
    inputs = AdvantageInputs(
        mask=torch.ones(4, 1, dtype=torch.bool),
        rewards=torch.zeros(4, 1),
        scores=torch.tensor([1.0, 0.0, 1.0, 1.0]),
        group=torch.tensor([0, 0, 1, 1]),
    )
    assert step_advantages("gpg", inputs)[0][:, 0].tolist() == [1.0, -1.0, 0.0, 0.0]


def test_process_rewards_by_hand():
    # Steps of the group: 1, 0, 0.5 -> mean 0.5, std 0.5: 1, -1, 0; sums from the right.
    rewards = torch.tensor([[1.0, 9.0, 0.0], [0.5, 9.0, 9.0]])
    steps = torch.tensor([[True, False, True], [True, False, False]])
    mask = torch.tensor([[True, True, True], [True, True, False]])
    got = process(rewards, steps, mask, torch.tensor([0, 0]), eps=0.0)
    assert got.tolist() == [[0.0, -1.0, -1.0], [0.0, 0.0, 0.0]]


def test_with_the_outcome_as_only_step_process_supervision_is_grpo():
    batch = ragged(5, holes=False)
    keep = batch.mask.any(-1)
    batch = batch.rows(keep)
    rewards = token_level_rewards(batch.scores, None, batch.mask, 0.0)
    last = batch.mask & (batch.mask.flip(-1).cumsum(-1).flip(-1) == 1)
    got = process(rewards, last, batch.mask, batch.group)
    torch.testing.assert_close(got, grpo(batch.scores, batch.group, batch.mask))


def test_remax_of_an_outcome_is_the_score_over_the_greedy_one():
    batch = ragged(6)
    rewards = token_level_rewards(batch.scores, None, batch.mask, 0.0)
    got = rewards_to_go(rewards, batch.mask, 1.0, batch.baselines)
    want = torch.where(batch.mask, (batch.scores - batch.baselines)[:, None], 0.0)
    torch.testing.assert_close(got, want)


def test_token_rewards_put_the_score_on_the_last_token():
    mask = torch.arange(3)[None, :] < torch.tensor([[3], [1], [0]])
    kl = torch.tensor([[1.0, 2.0, 3.0], [4.0, torch.nan, torch.nan], [torch.nan] * 3])
    score = torch.tensor([10.0, 20.0, 30.0])
    got = token_level_rewards(score, kl, mask, 0.5)
    assert got.tolist() == [[-0.5, -1.0, 8.5], [18.0, 0.0, 0.0], [0.0, 0.0, 0.0]]
    assert sequence_rewards(score, kl, mask, 0.5).tolist() == [7.0, 18.0, 30.0]
    assert token_level_rewards(score, None, mask, 0.5)[0].tolist() == [0.0, 0.0, 10.0]
    holed = torch.tensor([[True, False, True], [False, True, False], [True, True, False]])
    got = token_level_rewards(score, None, holed, 0.0)
    assert got.tolist() == [[0.0, 0.0, 10.0], [0.0, 20.0, 0.0], [0.0, 30.0, 0.0]]
    steps = torch.tensor([[1.0, torch.nan, 2.0], [3.0, 4.0, 5.0], [0.0, 6.0, torch.nan]])
    got = token_level_rewards(score, None, holed, 0.0, steps)
    assert got.tolist() == [[1.0, 0.0, 12.0], [0.0, 24.0, 0.0], [0.0, 36.0, 0.0]]


def test_what_an_estimator_needs_is_said():
    needs = {
        name: (e.needs_values, e.needs_groups, e.needs_greedy, e.normalization is not None)
        for name in estimator_names()
        for e in [estimator(name)]
    }
    groups = ("grpo", "grpo_no_std", "grpo_passk", "grpo_process", "opo", "rloo")
    assert needs == {
        "gae": (True, False, False, False),
        "gpg": (False, True, False, True),
        "reinforce_plus_plus": (False, False, False, True),
        "reinforce_plus_plus_baseline": (False, True, False, True),
        "remax": (False, False, True, False),
    } | dict.fromkeys(groups, (False, True, False, False))

"""Estimators against literal restatements of their formulas in Python floats."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megarl.algorithms import advantages as adv
from megarl.algorithms.advantages import (
    AdvantageInputs,
    compute_advantages,
    gae,
    grpo,
    rloo,
    sequence_rewards,
    token_level_rewards,
)
from megarl.errors import ConfigError

F64 = torch.float64


def mask_of(lengths, width):
    return torch.arange(width)[None, :] < torch.tensor(lengths)[:, None]


def gae_by_definition(rewards, values, length, gamma, lam):
    """A_t = sum over l of (gamma lam)^l delta_{t+l}: the sum itself, not the recursion."""
    values = [*values[:length], 0.0]
    delta = [rewards[t] + gamma * values[t + 1] - values[t] for t in range(length)]
    return [
        sum((gamma * lam) ** k * delta[t + k] for k in range(length - t)) for t in range(length)
    ]


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 6), min_size=1, max_size=5),
    gamma=st.floats(0, 1),
    lam=st.floats(0, 1),
    seed=st.integers(0, 2**31),
)
def test_gae_is_the_discounted_sum_of_deltas(lengths, gamma, lam, seed):
    generator = torch.Generator().manual_seed(seed)
    rewards, values = torch.randn(2, len(lengths), 6, dtype=F64, generator=generator)
    mask = mask_of(lengths, 6)
    values[~mask] = float("nan")
    got, returns = gae(rewards, values, mask, gamma, lam)
    for i, length in enumerate(lengths):
        want = gae_by_definition(rewards[i].tolist(), values[i].tolist(), length, gamma, lam)
        assert got[i, :length].tolist() == pytest.approx(want, abs=1e-10)
        assert (got[i, length:] == 0).all() and (returns[i, length:] == 0).all()
        torch.testing.assert_close(returns[i, :length], got[i, :length] + values[i, :length])


def test_gae_by_hand():
    # V = 1, 2; r = 0, 10; gamma 0.5, lam 0.5: delta = 0 + 1 - 1, 10 - 2; A = 0 + 0.25 * 8, 8
    got, returns = gae(
        torch.tensor([[0.0, 10.0]]), torch.tensor([[1.0, 2.0]]), mask_of([2], 2), 0.5, 0.5
    )
    assert got.tolist() == [[2.0, 8.0]]
    assert returns.tolist() == [[3.0, 10.0]]


def test_gae_steps_over_holes_in_the_mask():
    mask = torch.tensor([[True, False, True]])
    rewards, values = torch.tensor([[1.0, 9.0, 2.0]]), torch.tensor([[3.0, 7.0, 5.0]])
    got, _ = gae(rewards, values, mask, 0.9, 0.8)
    dense, _ = gae(rewards[:, [0, 2]], values[:, [0, 2]], mask_of([2], 2), 0.9, 0.8)
    assert got[0, [0, 2]].tolist() == dense[0].tolist() and got[0, 1] == 0


def group_baselines(scores, group):
    """Per row: (mean, unbiased std) of its group and (mean) of the group's others."""
    for i, g in enumerate(group):
        members = [s for s, h in zip(scores, group, strict=True) if h == g]
        others = [s for j, s in enumerate(scores) if group[j] == g and j != i]
        mean = sum(members) / len(members)
        spread = sum((s - mean) ** 2 for s in members)
        yield mean, math.sqrt(spread / max(len(members) - 1, 1)), others


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(
        st.tuples(st.floats(-5, 5), st.sampled_from([-3, 0, 7, 12])), min_size=1, max_size=9
    )
)
def test_group_estimators_restate_their_formulas(rows):
    scores, group = (list(column) for column in zip(*rows, strict=True))
    tensors = torch.tensor(scores, dtype=F64), torch.tensor(group)
    mask = mask_of([i % 3 for i in range(len(rows))], 2)
    with_std, plain, leave_one_out = (
        grpo(*tensors, mask),
        grpo(*tensors, mask, norm_by_std=False),
        rloo(*tensors, mask),
    )
    for i, (mean, std, others) in enumerate(group_baselines(scores, group)):
        centred = scores[i] - mean
        expected = {
            with_std: centred / (std + 1e-6),
            plain: centred,
            leave_one_out: scores[i] - sum(others) / len(others) if others else 0.0,
        }
        for got, want in expected.items():
            # Equal scores leave rounding in the mean, which 1e-6 magnifies.
            assert got[i][mask[i]].tolist() == pytest.approx([want] * (i % 3), abs=1e-8)
            assert (got[i][~mask[i]] == 0).all()


def test_grpo_by_hand():
    scores, group = torch.tensor([1.0, 0.0, 0.0, 1.0, 5.0]), torch.tensor([4, 4, 4, 4, 9])
    std = math.sqrt(1 / 3)
    got = grpo(scores, group, mask_of([1] * 5, 1))[:, 0].tolist()
    assert got == pytest.approx([0.5 / std, -0.5 / std, -0.5 / std, 0.5 / std, 0.0], rel=1e-5)
    # others of the first: 0, 0, 1
    assert rloo(scores, group, mask_of([1] * 5, 1))[0, 0].item() == pytest.approx(2 / 3)


def test_sample_order_and_padding_do_not_matter():
    generator = torch.Generator().manual_seed(1)
    scores = torch.randn(12, dtype=F64, generator=generator)
    group, lengths = torch.arange(12) // 4, [3, 1, 0, 4] * 3
    order = torch.randperm(12, generator=generator)
    mask, wide = mask_of(lengths, 4), mask_of(lengths, 9)
    for estimate in (grpo, rloo):
        whole = estimate(scores, group, mask)
        torch.testing.assert_close(estimate(scores[order], group[order], mask[order]), whole[order])
        assert torch.equal(estimate(scores, group, wide)[:, :4], whole)
        halves = [estimate(scores[s], group[s], mask[s]) for s in (slice(0, 4), slice(4, 12))]
        torch.testing.assert_close(torch.cat(halves), whole, rtol=0, atol=1e-12)


def test_token_rewards_put_the_score_on_the_last_token():
    mask = mask_of([3, 1, 0], 3)
    kl = torch.tensor([[1.0, 2.0, 3.0], [4.0, torch.nan, torch.nan], [torch.nan] * 3])
    score = torch.tensor([10.0, 20.0, 30.0])
    got = token_level_rewards(score, kl, mask, 0.5)
    assert got.tolist() == [[-0.5, -1.0, 8.5], [18.0, 0.0, 0.0], [0.0, 0.0, 0.0]]
    assert sequence_rewards(score, kl, mask, 0.5).tolist() == [7.0, 18.0, 30.0]
    assert token_level_rewards(score, None, mask, 0.5)[0].tolist() == [0.0, 0.0, 10.0]
    holed = torch.tensor([[True, False, True], [False, True, False], [True, True, False]])
    got = token_level_rewards(score, None, holed, 0.0)
    assert got.tolist() == [[0.0, 0.0, 10.0], [0.0, 20.0, 0.0], [0.0, 30.0, 0.0]]


def inputs_of(values=None):
    mask = mask_of([2, 0], 2)
    return AdvantageInputs(
        mask=mask,
        rewards=torch.ones(2, 2),
        scores=torch.tensor([1.0, 0.0]),
        group=torch.zeros(2, dtype=torch.long),
        values=values,
    )


@pytest.mark.parametrize("name", ["gae", "grpo", "grpo_no_std", "rloo"])
def test_every_estimator_is_finite_with_an_empty_response(name):
    advantages, returns = compute_advantages(name, inputs_of(torch.zeros(2, 2)))
    assert advantages.isfinite().all() and returns.isfinite().all()
    assert (advantages[1] == 0).all()


def test_batches_without_rows_or_tokens_are_fine():
    empty = torch.zeros(0, 3)
    assert grpo(empty[:, 0], torch.zeros(0, dtype=torch.long), empty.bool()).shape == (0, 3)
    assert gae(torch.zeros(2, 0), torch.zeros(2, 0), torch.zeros(2, 0).bool(), 1, 1)[0].numel() == 0


def test_registry_names_what_is_known_and_takes_new_ones(monkeypatch):
    monkeypatch.setattr(adv, "_ESTIMATORS", dict(adv._ESTIMATORS))
    with pytest.raises(ConfigError, match=r"'grop' is unknown: one of gae, grpo.*mean 'grpo'"):
        compute_advantages("grop", inputs_of())
    with pytest.raises(ConfigError, match="needs the values of a critic"):
        compute_advantages("gae", inputs_of())
    with pytest.raises(ConfigError, match="registered already"):

        @adv.register("gae")
        def _taken(inputs):
            raise AssertionError

    @adv.register("constant")
    def _constant(inputs):
        return inputs.rewards, inputs.rewards

    assert compute_advantages("constant", inputs_of())[0].sum() == 4
    assert not adv.estimator("constant").needs_values and adv.estimator("gae").needs_values

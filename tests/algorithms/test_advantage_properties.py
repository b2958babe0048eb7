"""What must not matter to an estimator, and batches at the edge of having nothing in them."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch
from ragged import F64, ragged
from test_advantages import inputs_of

from megarl.algorithms.advantages import (
    AdvantageInputs,
    compute_advantages,
    estimator,
    estimator_names,
    step_advantages,
)

NAMES = estimator_names()
COMPARING = [name for name in NAMES if estimator(name).needs_groups]


def take(inputs: AdvantageInputs, index: torch.Tensor) -> AdvantageInputs:
    tensors = {
        f.name: value[index]
        for f in fields(inputs)
        if isinstance(value := getattr(inputs, f.name), torch.Tensor)
    }
    return replace(inputs, **tensors)


@pytest.mark.parametrize("name", NAMES)
def test_ranks_with_whole_groups_agree_with_one_that_has_all(name):
    """Sums of the ranks are added and given back; one rank has no row."""
    inputs = inputs_of(ragged(2, rows=20))
    whole, whole_returns = step_advantages(name, inputs)
    normalization = estimator(name).normalization
    numbers = inputs.group.unique()
    owned = [torch.isin(inputs.group, numbers[part]) for part in (slice(0, 1), slice(1, 4))]
    parts = [index.nonzero()[:, 0] for index in [*owned, torch.zeros(20, dtype=torch.bool)]]
    raw = [compute_advantages(name, take(inputs, index)) for index in parts]
    if normalization is not None:
        given = zip(parts, raw, strict=True)
        total = sum(normalization.sums(take(inputs, i), a) for i, (a, _) in given)
        assert total.shape == (normalization.num_sums,) and total.dtype == F64
        raw = [
            (normalization.apply(a, inputs.mask[i], total), r)
            for i, (a, r) in zip(parts, raw, strict=True)
        ]
    for index, (advantages, returns) in zip(parts, raw, strict=True):
        torch.testing.assert_close(advantages, whole[index], rtol=0, atol=1e-10)
        torch.testing.assert_close(returns, whole_returns[index], rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", NAMES)
def test_order_of_samples_and_padding_do_not_matter(name):
    batch = ragged(4, rows=16)
    whole, _ = step_advantages(name, inputs_of(batch))
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0))
    moved, _ = step_advantages(name, inputs_of(batch.rows(order)))
    torch.testing.assert_close(moved, whole[order], rtol=0, atol=1e-10)
    padded, returns = step_advantages(name, inputs_of(batch.wider(5)))
    torch.testing.assert_close(padded[:, :9], whole, rtol=0, atol=1e-10)
    assert (padded[:, 9:] == 0).all() and (returns[:, 9:] == 0).all()


@pytest.mark.parametrize("name", COMPARING)
def test_a_shift_of_all_rewards_does_not_matter_where_samples_are_compared(name):
    inputs = inputs_of(ragged(7, rows=16))
    shifted = replace(inputs, scores=inputs.scores + 3.25, rewards=inputs.rewards + 3.25)
    torch.testing.assert_close(
        step_advantages(name, shifted)[0], step_advantages(name, inputs)[0], rtol=0, atol=1e-9
    )


@pytest.mark.parametrize("name", ["grpo", "grpo_process", "reinforce_plus_plus"])
def test_the_unit_of_the_reward_does_not_matter_where_it_is_normalised(name):
    inputs = inputs_of(ragged(8, rows=16))
    larger = replace(inputs, scores=inputs.scores * 1000, rewards=inputs.rewards * 1000)
    torch.testing.assert_close(
        step_advantages(name, larger)[0], step_advantages(name, inputs)[0], rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("name", ["grpo", "grpo_no_std", "rloo", "gpg"])
def test_advantages_of_a_group_sum_to_0(name):
    inputs = inputs_of(ragged(9, rows=16, holes=False))
    inputs = replace(inputs, mask=torch.ones_like(inputs.mask))
    got = step_advantages(name, inputs)[0][:, 0]
    for number in inputs.group.unique():
        assert got[inputs.group == number].sum().abs() < 1e-10


@pytest.mark.parametrize("name", COMPARING)
def test_equal_rewards_teach_exactly_nothing(name):
    # 0.1 has no exact mean over 3: rounding must not be magnified.
    inputs = inputs_of(ragged(1, rows=9))
    scores, rewards = torch.full((9,), 0.1, dtype=F64), torch.full_like(inputs.rewards, 0.1)
    advantages, _ = step_advantages(name, replace(inputs, scores=scores, rewards=rewards))
    assert (advantages == 0).all()


@pytest.mark.parametrize("name", COMPARING)
def test_groups_of_one_teach_nothing(name):
    inputs = replace(inputs_of(ragged(1, rows=9)), group=torch.arange(9))
    if name != "grpo_process":  # which compares the steps of one response, too
        assert (step_advantages(name, inputs)[0] == 0).all()
    one = take(inputs, torch.tensor([2]))
    assert step_advantages(name, one)[0].isfinite().all()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("rows", "width"), [(0, 3), (0, 0), (2, 0), (1, 1), (1, 5)])
def test_batches_without_rows_or_tokens(name, rows, width):
    zeros = torch.zeros(rows, width)
    for filled in (False, True):
        inputs = AdvantageInputs(
            mask=torch.full((rows, width), filled),
            rewards=zeros + 1,
            scores=torch.ones(rows),
            group=torch.zeros(rows, dtype=torch.long),
            values=zeros,
            baselines=torch.zeros(rows),
        )
        advantages, returns = step_advantages(name, inputs)
        assert advantages.shape == returns.shape == (rows, width)
        assert advantages.isfinite().all() and returns.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_nan_outside_the_mask_reaches_nothing_and_all_empty_masks_give_0(name):
    batch = ragged(3)
    assert batch.rewards.isnan().any()
    assert step_advantages(name, inputs_of(batch))[0].isfinite().all()
    empty = replace(inputs_of(batch), mask=torch.zeros_like(batch.mask))
    for result in step_advantages(name, empty):
        assert (result == 0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("name", NAMES)
def test_other_precisions_give_the_same_to_their_rounding(name, dtype):
    exact = inputs_of(ragged(5, rows=12))
    rounded = replace(
        exact,
        **{
            name: getattr(exact, name).to(dtype)
            for name in ("rewards", "values", "scores", "baselines")
        },
    )
    again = replace(
        exact,
        **{
            name: getattr(rounded, name).double()
            for name in ("rewards", "values", "scores", "baselines")
        },
    )
    got, want = step_advantages(name, rounded)[0], step_advantages(name, again)[0]
    assert got.dtype == dtype
    close = 4 * torch.finfo(dtype).eps * max(want.abs().max().item(), 1)
    torch.testing.assert_close(got.double(), want, rtol=0, atol=close)

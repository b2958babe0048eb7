"""Policy losses where there is nothing, one token, or numbers that are not finite."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from ragged import ragged
from test_policy import NAMES, OPTIONS, inputs_of, run, weights_of

from megarl.algorithms.policy import PolicyLossInputs

INF = float("inf")


def finite(result) -> bool:
    loss, gradient, stats = result
    return bool(
        loss.isfinite() and gradient.isfinite().all() and stats.to_vector().isfinite().all()
    )


def made(logprobs, old, advantages, mask=None, dtype=torch.float32) -> PolicyLossInputs:
    logprobs = torch.tensor(logprobs, dtype=dtype)
    mask = torch.ones_like(logprobs, dtype=torch.bool) if mask is None else torch.tensor(mask)
    return PolicyLossInputs(
        logprobs=logprobs,
        old_logprobs=torch.tensor(old, dtype=dtype),
        advantages=torch.tensor(advantages, dtype=dtype),
        mask=mask,
        weights=weights_of(mask).float(),
        selected=torch.ones_like(mask),
    )


@pytest.mark.parametrize("name", NAMES)
def test_nan_outside_the_mask_reaches_neither_value_nor_gradient(name):
    inputs = inputs_of(ragged(0))
    assert inputs.logprobs.isnan().any() and inputs.weights.isnan().any()
    result = run(name, inputs)
    assert finite(result) and (result[1][~inputs.mask] == 0).all()
    spoiled = replace(inputs, selected=inputs.selected | ~inputs.mask)
    again = run(name, spoiled)
    assert again[0] == result[0] and torch.equal(again[2].to_vector(), result[2].to_vector())


@pytest.mark.parametrize("name", NAMES)
def test_nan_inside_the_mask_is_not_hidden(name):
    inputs = inputs_of(ragged(0))
    broken = inputs.logprobs.clone()
    broken[2, int(inputs.mask[2].nonzero()[0])] = float("nan")
    selected = torch.zeros_like(inputs.mask)
    assert run(name, replace(inputs, logprobs=broken, selected=selected))[0].isnan()


@pytest.mark.parametrize("name", NAMES)
def test_all_masks_empty(name):
    inputs = inputs_of(ragged(0))
    nothing = replace(inputs, mask=torch.zeros_like(inputs.mask))
    loss, gradient, stats = run(name, nothing)
    assert loss == 0 and (gradient == 0).all()
    assert all(number == 0 for number in stats.metrics().values())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(0, 3), (2, 0), (0, 0)])
def test_no_rows_or_no_columns(name, shape):
    zeros = torch.zeros(shape)
    inputs = PolicyLossInputs(zeros, zeros, zeros, zeros.bool(), zeros, selected=zeros.bool())
    loss, _, stats = run(name, inputs)
    assert loss == 0 and stats.tokens == 0


@pytest.mark.parametrize("name", NAMES)
def test_responses_of_one_token_and_of_none(name):
    inputs = made([[-0.5, 9.0], [9.0, 9.0]], [[-0.7, 9.0], [9.0, 9.0]], [[1.0, 9.0], [9.0, 9.0]],
                  [[True, False], [False, False]])  # fmt: skip
    loss, gradient, stats = run(name, inputs)
    assert finite((loss, gradient, stats)) and stats.tokens == 1
    assert (gradient.flatten()[1:] == 0).all()


@pytest.mark.parametrize("advantage", [1.0, -1.0])
@pytest.mark.parametrize(
    ("new", "old"), [(-INF, -1.0), (-1.0, -INF), (-INF, -INF), (-1e4, 0.0), (0.0, -1e4)]
)
@pytest.mark.parametrize("name", NAMES)
def test_impossible_tokens_give_finite_numbers(name, new, old, advantage):
    """One broken token beside a sound one: no inf, no NaN, and the sound one still has its say."""
    inputs = made([[new, -1.0]], [[old, -1.0]], [[advantage, advantage]])
    inputs = replace(inputs, selected=torch.tensor([[True, False]]))
    result = run(name, inputs)
    assert finite(result)
    if name not in ("gspo", "geo_mean"):  # where the response has one ratio
        assert result[1][0, 1] != 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", NAMES)
def test_half_precision_is_worked_on_in_fp32(name, dtype):
    batch = ragged(4)
    exact = inputs_of(batch)
    names = ("logprobs", "old_logprobs", "advantages")
    half = replace(exact, **{n: getattr(exact, n).to(dtype) for n in names})
    same = replace(exact, **{n: getattr(half, n).double() for n in names})
    (loss, gradient, stats), (want, slope, sums) = run(name, half), run(name, same)
    assert gradient.dtype == dtype and finite((loss, gradient, stats))
    assert loss.item() == pytest.approx(want.item(), abs=1e-5)
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(gradient.double(), slope, rtol=eps, atol=eps / 100)
    torch.testing.assert_close(stats.to_vector(), sums.to_vector(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_without_entropy_it_is_estimated_from_the_samples(name):
    inputs = inputs_of(ragged(0))
    stats = run(name, inputs)[2]
    want = -inputs.logprobs[inputs.mask].sum()
    assert stats.entropy.item() == pytest.approx(want.item(), abs=1e-10)


def test_advantages_of_0_give_a_loss_of_0():
    inputs = replace(inputs_of(ragged(0)), advantages=torch.zeros_like(ragged(0).advantages))
    for name in set(NAMES) - {"kl_cov"}:
        loss, gradient, _ = run(name, inputs, OPTIONS)
        assert loss == 0 and (gradient == 0).all()

"""Policy losses: value and gradient against literal restatements, gradcheck, and splits.

Why a split cannot matter: a token's weight is 1 / global tokens (or 1 / global sequences, over its
own row's length), which no split changes; the loss is a sum of per_token * weight over tokens, and
a sum does not care how it is bracketed. What a loss takes of its whole response comes in as a sum
over the response's parts. Not covered here: the factors that a pipeline schedule and data
parallelism put on top; the caller undoes those.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import get_args

import literal_policy as literal
import pytest
import torch
from ragged import F64, Batch, ragged, spread_over

from megarl.algorithms.losses import LossAggMode, token_weights
from megarl.algorithms.policy import (
    PolicyLossInputs,
    PolicyLossOptions,
    compute_policy_loss,
    policy_loss,
    policy_loss_names,
    sequence_sums,
)
from megarl.algorithms.stats import PolicyStats
from megarl.errors import ConfigError

NAMES = policy_loss_names()
MODES = get_args(LossAggMode)
OPTIONS = PolicyLossOptions(0.2, 0.3, 1.6, tau_pos=1.2, tau_neg=1.5, ppo_kl_coef=0.7)
SEQUENCE = [name for name in NAMES if policy_loss(name).needs_sequences]


def counts(mask: torch.Tensor) -> tuple[float, float]:
    """Response tokens, and sequences with at least one."""
    lengths = mask.sum(-1)
    return float(lengths.sum()), float((lengths > 0).sum())


def weights_of(mask, mode="token-mean", total=None):
    tokens, sequences = total or counts(mask)
    given = {"global_tokens": tokens, "global_sequences": sequences, "norm_length": 8.0}
    return token_weights(mask, mode, **given).double()


def inputs_of(batch: Batch, mode="token-mean", total=None) -> PolicyLossInputs:
    weights = weights_of(batch.mask, mode, total)
    weights[~batch.mask] = float("nan")
    return PolicyLossInputs(
        logprobs=batch.logprobs,
        old_logprobs=batch.old_logprobs,
        advantages=batch.advantages,
        mask=batch.mask,
        weights=weights,
        selected=batch.steps,
    )


def one_advantage_per_row(batch: Batch) -> Batch:
    """As where a response has one score; its first token's, on all tokens."""
    per_row = torch.linspace(-1.5, 2, len(batch.mask), dtype=F64)
    return replace(batch, advantages=torch.where(batch.mask, per_row[:, None], torch.nan))


def lists(batch: Batch, weights: torch.Tensor):
    """The literal functions' arguments: new log-probs as Scalars with a derivative of their own."""
    new = [
        [literal.Scalar(x, {(i, t): 1.0}) for t, x in enumerate(row)]
        for i, row in enumerate(batch.inside(batch.logprobs))
    ]
    others = (batch.old_logprobs, batch.advantages, weights, batch.steps)
    return new, *(batch.inside(x) for x in others)


def gradient_of(scalar, batch: Batch) -> torch.Tensor:
    """[B, R] of a literal result's derivatives."""
    rows = [
        [scalar.by.get((i, t), 0.0) for t in range(int(count))]
        for i, count in enumerate(batch.mask.sum(-1))
    ]
    return spread_over(rows, batch.mask)


def run(name, inputs, options=OPTIONS):
    """Loss, gradient and sums."""
    logprobs = inputs.logprobs.detach().clone().requires_grad_()
    loss, stats = compute_policy_loss(name, replace(inputs, logprobs=logprobs), options)
    loss.backward()
    return loss.detach(), logprobs.grad, stats


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", [n for n in NAMES if n != "geo_mean"])
def test_losses_restate_their_formulas_in_value_and_gradient(name, seed):
    batch = ragged(seed)
    inputs = inputs_of(batch, MODES[seed])
    want = getattr(literal, name)(*lists(batch, inputs.weights), OPTIONS)
    loss, gradient, _ = run(name, inputs)
    assert loss.item() == pytest.approx(want.value, abs=1e-10)
    torch.testing.assert_close(gradient, gradient_of(want, batch), rtol=0, atol=1e-10)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", SEQUENCE)
def test_token_forms_are_those_of_whole_responses(name, seed):
    """With one advantage and one weight per response: value and gradient of the papers' forms."""
    batch = one_advantage_per_row(ragged(seed))
    inputs = inputs_of(batch, "seq-mean-token-mean")
    options = PolicyLossOptions(clip_ratio_low=0.05, clip_ratio_high=0.1)
    new, old, advantages, weights, _ = lists(batch, inputs.weights)
    row_weights = [sum(row) for row in weights]
    formula = getattr(literal, f"{name}_of_responses")
    want = formula(new, old, advantages, row_weights, options)
    loss, gradient, stats = run(name, inputs, options)
    assert loss.item() == pytest.approx(want.value, abs=1e-10)
    torch.testing.assert_close(gradient, gradient_of(want, batch), rtol=0, atol=1e-10)
    assert 0 < stats.clipped < stats.tokens


@pytest.mark.parametrize("name", NAMES)
def test_gradcheck(name):
    batch = one_advantage_per_row(ragged(3))
    inputs = inputs_of(batch, "seq-mean-token-mean")
    # CISPO's ratio passes no gradient on purpose: the check needs one that does not change.
    fixed = PolicyLossOptions(clip_ratio_low=0.0, clip_ratio_high=0.0)
    options = fixed if name == "cispo" else OPTIONS
    flat = batch.logprobs[batch.mask].clone().requires_grad_()

    def loss_of(tokens):
        logprobs = torch.full_like(batch.logprobs, torch.nan).masked_scatter(batch.mask, tokens)
        return compute_policy_loss(name, replace(inputs, logprobs=logprobs), options)[0]

    assert torch.autograd.gradcheck(loss_of, flat)


@pytest.mark.parametrize("name", NAMES)
def test_on_policy_gradient_is_the_policy_gradient(name):
    """At ratio 1 the gradient by a token's log-prob is -A * weight: plain REINFORCE."""
    batch = ragged(1)
    inputs = replace(
        inputs_of(batch),
        logprobs=batch.old_logprobs,
        selected=torch.zeros_like(batch.mask),
    )
    _, gradient, stats = run(name, inputs)
    want = torch.where(batch.mask, -batch.advantages * inputs.weights, 0.0)
    torch.testing.assert_close(gradient, want)
    assert stats.clipped == stats.selected == 0 and stats.ratio == stats.tokens


def test_ppo_by_hand():
    # ratio 2 with A = 1 is held at 1.2; with A = -1 it is not held, until dual clip at 1.5.
    inputs = PolicyLossInputs(
        logprobs=torch.tensor([[math.log(2.0)] * 2]),
        old_logprobs=torch.zeros(1, 2),
        advantages=torch.tensor([[1.0, -1.0]]),
        mask=torch.ones(1, 2, dtype=torch.bool),
        weights=torch.ones(1, 2),
    )
    plain, _ = compute_policy_loss("ppo", inputs, PolicyLossOptions())
    assert plain.item() == pytest.approx(-1.2 + 2.0)
    dual, stats = compute_policy_loss("ppo", inputs, PolicyLossOptions(clip_ratio_c=1.5))
    assert dual.item() == pytest.approx(-1.2 + 1.5)
    assert stats.metrics()["actor/ratio_mean"] == pytest.approx(2.0)


def test_sequence_ratios_by_hand():
    # ratios 4 and 1: their geometric mean is 2. GMPO cuts the 4 at e first: sqrt(e).
    inputs = PolicyLossInputs(
        logprobs=torch.tensor([[math.log(4.0), 0.0]]),
        old_logprobs=torch.zeros(1, 2),
        advantages=torch.ones(1, 2),
        mask=torch.ones(1, 2, dtype=torch.bool),
        weights=torch.full((1, 2), 0.5),
    )
    loose = PolicyLossOptions(clip_ratio_high=5.0)
    assert compute_policy_loss("gspo", inputs, loose)[0].item() == pytest.approx(-2)
    one = PolicyLossOptions(clip_ratio_high=1.0)
    assert compute_policy_loss("geo_mean", inputs, one)[0].item() == pytest.approx(
        -math.sqrt(math.e)
    )


def test_sums_are_those_of_the_tokens():
    batch = ragged(2)
    inputs = replace(inputs_of(batch), entropy=-batch.old_logprobs)
    new, old, advantages, _, selected = lists(batch, inputs.weights)
    clipped = dual = 0
    ratios, kl, entropy = 0.0, 0.0, 0.0
    for i, row in enumerate(new):
        for t, x in enumerate(row):
            a, d = advantages[i][t], x.value - old[i][t]
            r = math.exp(d)
            bounded = -a * min(max(r, 0.8), 1.3)
            clipped += bounded > -a * r
            dual += a < 0 and max(-a * r, bounded) > -a * 1.6
            ratios, kl, entropy = ratios + r, kl - d, entropy - old[i][t]
    _, _, stats = run("ppo", inputs)
    tokens = int(batch.mask.sum())
    assert (stats.tokens, stats.clipped, stats.dual_clipped) == (tokens, clipped, dual)
    assert clipped > 0 and dual > 0
    for got, want in ((stats.ratio, ratios), (stats.kl, kl), (stats.entropy, entropy)):
        assert got.item() == pytest.approx(want, abs=1e-10)
    assert stats.metrics()["actor/ppo_kl"] == pytest.approx(kl / tokens, abs=1e-10)
    assert stats.kl_k3 >= 0 and stats.selected == 0
    chosen = sum(map(sum, selected))
    assert run("kl_cov", inputs)[2].selected == run("clip_cov", inputs)[2].selected == chosen > 0


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("mode", MODES)
def test_any_split_order_and_padding_give_the_same_loss_gradient_and_sums(name, mode):
    batch = ragged(5, rows=8)
    total = counts(batch.mask)
    whole = run(name, inputs_of(batch, mode, total))
    order = torch.randperm(8, generator=torch.Generator().manual_seed(8))
    for split in ([8], [1] * 8, [2, 6], [3, 1, 2, 2]):
        losses, gradient = 0.0, torch.zeros_like(whole[1])
        stats = PolicyStats.zero()
        for rows in order.split(split):
            part = batch.rows(rows).wider(len(rows))
            loss, g, s = run(name, inputs_of(part, mode, total))
            losses, stats = losses + loss.item(), stats + s
            gradient[rows] = g[:, : batch.mask.shape[1]]
        assert losses == pytest.approx(whole[0].item(), abs=1e-10)
        torch.testing.assert_close(gradient, whole[1], rtol=0, atol=1e-10)
        assert stats.metrics() == pytest.approx(whole[2].metrics(), abs=1e-10)


@pytest.mark.parametrize("name", NAMES)
def test_rows_that_are_spread_over_ranks_give_the_same(name):
    """Columns cut in three, as context parallelism does; sums of the parts come in."""
    batch = ragged(6, rows=8)
    inputs = inputs_of(batch, "seq-mean-token-mean")
    whole = run(name, inputs)

    def columns(part: slice) -> PolicyLossInputs:
        names = ("logprobs", "old_logprobs", "advantages", "mask", "weights", "selected")
        return replace(inputs, **{n: getattr(inputs, n)[:, part] for n in names})

    parts = [columns(part) for part in (slice(0, 2), slice(2, 3), slice(3, 9))]
    chosen = policy_loss(name)
    if chosen.needs_sequences:
        total = sum(sequence_sums(chosen, part, OPTIONS) for part in parts)
        assert total.shape == (8, 2) and total.dtype == F64
        parts = [replace(part, sequence_sums=total) for part in parts]
    results = [run(name, part) for part in parts]
    assert sum(loss.item() for loss, _, _ in results) == pytest.approx(whole[0].item(), abs=1e-10)
    gradient = torch.cat([g for _, g, _ in results], 1)
    torch.testing.assert_close(gradient, whole[1], rtol=0, atol=1e-10)


def test_sums_travel_as_a_vector():
    stats = PolicyStats.from_vector(torch.arange(8, dtype=F64))
    assert stats.to_vector().tolist() == list(range(8))
    assert (stats + stats).entropy == 12 and (stats + stats).selected == 14


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"clip_ratio_low": 1.0}, "clip_ratio_low is 1.0"),
        ({"clip_ratio_high": -0.1}, "clip_ratio_high is -0.1"),
        ({"clip_ratio_c": 1.0}, "clip_ratio_c is 1.0.*greater than 1"),
        ({"tau_neg": 0.0}, "tau_neg is 0.0: the gate divides by it"),
        ({"ppo_kl_coef": -1.0}, "ppo_kl_coef is -1.0"),
    ],
)
def test_numbers_out_of_range_are_named(changed, message):
    with pytest.raises(ConfigError, match=message):
        PolicyLossOptions(**changed)


def test_a_loss_without_its_selection_says_so():
    inputs = replace(inputs_of(ragged(0)), selected=None)
    for name in ("kl_cov", "clip_cov"):
        with pytest.raises(ConfigError, match=f"'{name}' treats tokens apart.*none were given"):
            compute_policy_loss(name, inputs, OPTIONS)

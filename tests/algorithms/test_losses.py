"""Losses: literal restatements, gradients, and independence of split, padding and order.

Why a split cannot matter: a token's weight is 1 / global tokens (or 1 / global sequences, over its
own row's length), which no split changes; the loss is a sum of per_token * weight over tokens, and
a sum does not care how it is bracketed. Not covered here: the factors that a pipeline schedule and
data parallelism put on top; the caller undoes those.
"""

from __future__ import annotations

import math
from typing import get_args

import pytest
import torch

from megarl.algorithms.losses import (
    LossAggMode,
    policy_loss,
    token_weights,
    value_loss,
    weighted_sum,
)
from megarl.algorithms.stats import PolicyStats, ValueStats
from megarl.errors import ConfigError

F64 = torch.float64
MODES = get_args(LossAggMode)
LENGTHS = [5, 0, 1, 3, 5, 2]
CLIP = {"clip_ratio_low": 0.2, "clip_ratio_high": 0.3, "clip_ratio_c": 1.6}


def counts(mask: torch.Tensor) -> torch.Tensor:
    """int64 [2]: response tokens, sequences with at least one."""
    lengths = mask.sum(-1)
    return torch.stack([lengths.sum(), (lengths > 0).sum()])


def make(seed=0, lengths=LENGTHS, width=5):
    """(logprobs, old, advantages, mask); NaN in the padding, ratios well beyond the clips."""
    generator = torch.Generator().manual_seed(seed)
    old = -torch.rand(len(lengths), width, dtype=F64, generator=generator) * 3
    logprobs = old + 0.5 * torch.randn(old.shape, dtype=F64, generator=generator)
    advantages = torch.randn(old.shape, dtype=F64, generator=generator)
    mask = torch.arange(width)[None, :] < torch.tensor(lengths)[:, None]
    for x in (logprobs, old, advantages):
        x[~mask] = float("nan")
    return logprobs, old, advantages, mask


def weights_of(mask, mode="token-mean", total=None):
    tokens, sequences = total if total is not None else counts(mask)
    weights = token_weights(
        mask, mode, global_tokens=tokens, global_sequences=sequences, norm_length=8
    )
    return weights.double()


def tokens_of(lengths):
    return [(i, j) for i, length in enumerate(lengths) for j in range(length)]


def aggregate(per_token: dict, mode: str) -> float:
    """The four aggregations, as their papers say them."""
    rows: dict[int, list[float]] = {}
    for (i, _), value in per_token.items():
        rows.setdefault(i, []).append(value)
    sums = [sum(row) for row in rows.values()]
    return {
        "token-mean": sum(sums) / len(per_token),
        "seq-mean-token-sum": sum(sums) / len(rows),
        "seq-mean-token-mean": sum(sum(r) / len(r) for r in rows.values()) / len(rows),
        "seq-mean-token-sum-norm": sum(sums) / 8 / len(rows),
    }[mode]


@pytest.mark.parametrize("mode", MODES)
def test_policy_loss_restates_ppo_with_dual_clip(mode):
    logprobs, old, advantages, mask = make()
    per_token, clipped, dual, kl = {}, 0, 0, 0.0
    for i, j in tokens_of(LENGTHS):
        a = advantages[i, j].item()
        ratio = math.exp(logprobs[i, j].item() - old[i, j].item())
        plain, bounded = -a * ratio, -a * min(max(ratio, 0.8), 1.3)
        loss = max(plain, bounded)
        clipped += bounded > plain
        if a < 0 and loss > -a * 1.6:
            loss, dual = -a * 1.6, dual + 1
        per_token[i, j] = loss
        kl += old[i, j].item() - logprobs[i, j].item()
    got, stats = policy_loss(logprobs, old, advantages, mask, weights_of(mask, mode), **CLIP)
    # Weights are fp32 by contract, so the aggregate agrees to fp32; the sums below to fp64.
    assert got.item() == pytest.approx(aggregate(per_token, mode), rel=1e-6)
    exact = mask.double()
    unweighted, _ = policy_loss(logprobs, old, advantages, mask, exact, **CLIP)
    assert unweighted.item() == pytest.approx(sum(per_token.values()), abs=1e-10)
    assert clipped > 0 and dual > 0
    assert (stats.clipped, stats.dual_clipped, stats.tokens) == (clipped, dual, 16)
    assert stats.kl.item() == pytest.approx(kl, abs=1e-10)
    assert stats.metrics()["actor/ppo_kl"] == pytest.approx(kl / 16, abs=1e-10)
    assert stats.kl_k3 >= 0


def test_policy_loss_by_hand():
    # ratio 2 with A = 1 is held at 1.2; with A = -1 it is not held, until dual clip at 1.5.
    logprobs, old = torch.tensor([[math.log(2.0)] * 2]), torch.zeros(1, 2)
    advantages, mask = torch.tensor([[1.0, -1.0]]), torch.ones(1, 2, dtype=torch.bool)
    ones = torch.ones(1, 2)
    ppo, _ = policy_loss(
        logprobs, old, advantages, mask, ones, clip_ratio_low=0.2, clip_ratio_high=0.2
    )
    assert ppo.item() == pytest.approx(-1.2 + 2.0)
    dual, stats = policy_loss(
        logprobs, old, advantages, mask, ones,
        clip_ratio_low=0.2, clip_ratio_high=0.2, clip_ratio_c=1.5,
    )  # fmt: skip
    assert dual.item() == pytest.approx(-1.2 + 1.5)
    assert stats.metrics()["actor/ratio_mean"] == pytest.approx(2.0)


def test_on_policy_gradient_is_the_policy_gradient():
    """At ratio 1 the gradient by a token's log-prob is -A * weight: plain REINFORCE."""
    _, old, advantages, mask = make()
    logprobs = old.clone().requires_grad_()
    weights = weights_of(mask)
    loss, stats = policy_loss(logprobs, old, advantages, mask, weights, **CLIP)
    loss.backward()
    torch.testing.assert_close(logprobs.grad, torch.where(mask, -advantages * weights, 0.0))
    assert stats.clipped == 0 and stats.ratio == 16


def test_gradients_are_right_and_padding_gets_none():
    logprobs, old, advantages, mask = make(seed=3)
    weights = weights_of(mask, "seq-mean-token-mean")
    flat = logprobs[mask].clone().requires_grad_()

    def loss_of(loss_fn):
        def call(tokens):
            return loss_fn(torch.full_like(logprobs, torch.nan).masked_scatter(mask, tokens))

        return call

    assert torch.autograd.gradcheck(
        loss_of(lambda x: policy_loss(x, old, advantages, mask, weights, **CLIP)[0]), flat
    )
    assert torch.autograd.gradcheck(
        loss_of(lambda x: value_loss(x, old, advantages, mask, weights, value_clip=0.3)[0]), flat
    )
    whole = logprobs.clone().requires_grad_()
    policy_loss(whole, old, advantages, mask, weights, **CLIP)[0].backward()
    assert (whole.grad[~mask] == 0).all() and (whole.grad[mask] != 0).any()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("split", [[6], [1] * 6, [2, 4], [3, 1, 2]])
def test_any_split_gives_the_same_loss_gradient_and_stats(mode, split):
    data = make(seed=5)
    total = counts(data[3])

    def run(parts):
        logprobs = data[0].clone().requires_grad_()
        losses, policy, value = [], PolicyStats.zero(), ValueStats.zero()
        for rows in parts:
            x, old, adv, m = logprobs[rows], *(t[rows] for t in data[1:])
            # Each micro-batch is padded to its own longest row only.
            width = int(m.sum(-1).max())
            x, old, adv, m = (t[:, :width] for t in (x, old, adv, m))
            weights = weights_of(m, mode, total)
            loss, stats = policy_loss(x, old, adv, m, weights, entropy=-x, **CLIP)
            v_loss, v_stats = value_loss(x, old, adv, m, weights, value_clip=0.1)
            (loss + v_loss).backward()
            losses.append(loss.item() + v_loss.item())
            policy, value = policy + stats, value + v_stats
        return sum(losses), logprobs.grad, policy.metrics() | value.metrics()

    whole = run([torch.arange(6)])
    order = torch.randperm(6, generator=torch.Generator().manual_seed(8))
    for parts in (torch.arange(6).split(split), order.split(split)):
        loss, grad, metrics = run(parts)
        assert loss == pytest.approx(whole[0], abs=1e-10)
        torch.testing.assert_close(grad, whole[1], rtol=0, atol=1e-10)
        assert metrics == pytest.approx(whole[2], abs=1e-10)


def test_value_loss_restates_the_clipped_error():
    values, old, returns, mask = make(seed=2)
    want, clipped = 0.0, 0
    for i, j in tokens_of(LENGTHS):
        v, o, r = (x[i, j].item() for x in (values, old, returns))
        near = min(max(v, o - 0.3), o + 0.3)
        want += 0.5 * max((v - r) ** 2, (near - r) ** 2)
        clipped += (near - r) ** 2 > (v - r) ** 2
    got, stats = value_loss(values, old, returns, mask, mask.double(), value_clip=0.3)
    assert got.item() == pytest.approx(want, abs=1e-10)
    assert stats.clipped == clipped > 0
    plain, _ = value_loss(values, old, returns, mask, mask.double(), value_clip=None)
    assert plain.item() == pytest.approx(0.5 * stats.error_squared.item(), abs=1e-10)
    residual = (returns - values)[mask].var(unbiased=False) / returns[mask].var(unbiased=False)
    assert stats.metrics()["critic/vf_explained_var"] == pytest.approx(1 - residual.item())


def test_weights_sum_to_one_or_to_the_mean_length():
    mask = make()[3]
    assert weights_of(mask, "token-mean").sum().item() == pytest.approx(1, rel=1e-6)
    assert weights_of(mask, "seq-mean-token-mean").sum().item() == pytest.approx(1, rel=1e-6)
    assert weights_of(mask, "seq-mean-token-sum").sum().item() == pytest.approx(16 / 5, rel=1e-6)


def test_a_batch_of_empty_responses_has_loss_0():
    logprobs, old, advantages, mask = make(lengths=[0, 0])
    for mode in MODES:
        weights = weights_of(mask, mode)
        loss, stats = policy_loss(logprobs, old, advantages, mask, weights, **CLIP)
        v_loss, v_stats = value_loss(logprobs, old, advantages, mask, weights, value_clip=0.2)
        assert loss == 0 and v_loss == 0
        numbers = (stats.metrics() | v_stats.metrics()).values()
        assert all(number == 0 for number in numbers)


def test_one_broken_token_does_not_overflow():
    mask = torch.ones(1, 1, dtype=torch.bool)
    loss, stats = policy_loss(
        torch.zeros(1, 1), torch.full((1, 1), -1e4), -mask.float(), mask, mask.float(), **CLIP
    )
    assert loss.isfinite() and stats.to_vector().isfinite().all()


def test_stats_travel_as_a_vector():
    stats = PolicyStats.from_vector(torch.arange(7, dtype=F64))
    assert stats.to_vector().tolist() == list(range(7))
    assert (stats + stats).entropy == 12


def test_weighted_sum_ignores_padding():
    x, _, _, mask = make()
    assert weighted_sum(x, mask, weights_of(mask)).isfinite()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"clip_ratio_low": 1.0}, "clip_ratio_low is 1.0"),
        ({"clip_ratio_high": -0.1}, "clip_ratio_high is -0.1"),
        ({"clip_ratio_c": 1.0}, "clip_ratio_c is 1.0.*greater than 1"),
    ],
)
def test_clip_ratios_out_of_range_are_named(changed, message):
    logprobs, old, advantages, mask = make()
    with pytest.raises(ConfigError, match=message):
        policy_loss(logprobs, old, advantages, mask, weights_of(mask), **CLIP | changed)


def test_bad_aggregation_and_value_clip_are_named():
    mask = make()[3]
    one = {"global_tokens": 1, "global_sequences": 1}
    with pytest.raises(ConfigError, match="'mean' is unknown: one of token-mean"):
        token_weights(mask, "mean", **one)
    with pytest.raises(ConfigError, match="norm_length, which is None"):
        token_weights(mask, "seq-mean-token-sum-norm", **one)
    with pytest.raises(ConfigError, match="value_clip is 0"):
        value_loss(*make(), mask.double(), value_clip=0)

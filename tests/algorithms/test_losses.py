"""Weights and the value loss: restated, gradients, and independence of split, padding and order.

Why a split cannot matter: a token's weight is 1 / global tokens (or 1 / global sequences, over its
own row's length), which no split changes; the loss is a sum of per_token * weight over tokens, and
a sum does not care how it is bracketed. Not covered here: the factors that a pipeline schedule and
data parallelism put on top; the caller undoes those.
"""

from __future__ import annotations

from typing import get_args

import pytest
import torch

from megarl.algorithms.losses import LossAggMode, token_weights, value_loss, weighted_sum
from megarl.algorithms.stats import ValueStats
from megarl.errors import ConfigError

F64 = torch.float64
MODES = get_args(LossAggMode)
LENGTHS = [5, 0, 1, 3, 5, 2]


def counts(mask: torch.Tensor) -> torch.Tensor:
    """int64 [2]: response tokens, sequences with at least one."""
    lengths = mask.sum(-1)
    return torch.stack([lengths.sum(), (lengths > 0).sum()])


def make(seed=0, lengths=LENGTHS, width=5):
    """(values, old values, returns, mask); NaN in the padding, changes well beyond the clip."""
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
def test_weights_aggregate_as_their_papers_say(mode):
    values, _, _, mask = make()
    per_token = {(i, j): values[i, j].item() for i, j in tokens_of(LENGTHS)}
    got = weighted_sum(values, mask, weights_of(mask, mode))
    # Weights are fp32 by contract.
    assert got.item() == pytest.approx(aggregate(per_token, mode), rel=1e-6)


def test_gradients_are_right_and_padding_gets_none():
    values, old, returns, mask = make(seed=3)
    weights = weights_of(mask, "seq-mean-token-mean")
    flat = values[mask].clone().requires_grad_()

    def loss_of(tokens):
        given = torch.full_like(values, torch.nan).masked_scatter(mask, tokens)
        return value_loss(given, old, returns, mask, weights, value_clip=0.3)[0]

    assert torch.autograd.gradcheck(loss_of, flat)
    whole = values.clone().requires_grad_()
    value_loss(whole, old, returns, mask, weights, value_clip=0.3)[0].backward()
    assert (whole.grad[~mask] == 0).all() and (whole.grad[mask] != 0).any()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("split", [[6], [1] * 6, [2, 4], [3, 1, 2]])
def test_any_split_gives_the_same_loss_gradient_and_stats(mode, split):
    data = make(seed=5)
    total = counts(data[3])

    def run(parts):
        values = data[0].clone().requires_grad_()
        losses, sums = 0.0, ValueStats.zero()
        for rows in parts:
            x, old, returns, m = values[rows], *(t[rows] for t in data[1:])
            # Each micro-batch is padded to its own longest row only.
            width = int(m.sum(-1).max())
            x, old, returns, m = (t[:, :width] for t in (x, old, returns, m))
            weights = weights_of(m, mode, total)
            loss, stats = value_loss(x, old, returns, m, weights, value_clip=0.1)
            loss.backward()
            losses, sums = losses + loss.item(), sums + stats
        return losses, values.grad, sums.metrics()

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
    values, old, returns, mask = make(lengths=[0, 0])
    for mode in MODES:
        loss, stats = value_loss(values, old, returns, mask, weights_of(mask, mode), value_clip=0.2)
        assert loss == 0 and all(number == 0 for number in stats.metrics().values())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_worked_on_in_fp32(dtype):
    values, old, returns, mask = make()
    half = (values * 1000).to(dtype).requires_grad_()  # whose square fp16 does not hold
    loss, stats = value_loss(half, old, returns, mask, weights_of(mask), value_clip=None)
    loss.backward()
    assert loss.isfinite() and stats.to_vector().isfinite().all()
    assert half.grad.isfinite().all() and half.grad.dtype == dtype


def test_weighted_sum_ignores_padding():
    x, _, _, mask = make()
    assert weighted_sum(x, mask, weights_of(mask)).isfinite()


def test_bad_aggregation_and_value_clip_are_named():
    mask = make()[3]
    one = {"global_tokens": 1, "global_sequences": 1}
    with pytest.raises(ConfigError, match="'mean' is unknown: one of token-mean"):
        token_weights(mask, "mean", **one)
    with pytest.raises(ConfigError, match="norm_length, which is None"):
        token_weights(mask, "seq-mean-token-sum-norm", **one)
    with pytest.raises(ConfigError, match="value_clip is 0"):
        value_loss(*make(), mask.double(), value_clip=0)

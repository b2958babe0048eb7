"""Masked sums and whitening: padding never counts, and moments add over any split."""

from __future__ import annotations

import pytest
import torch

from megarl.algorithms.masked import masked_sum, moments, whiten

F64 = torch.float64


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(7, 5, dtype=F64, generator=generator) * 3 + 10
    mask = torch.arange(5)[None, :] < torch.tensor([5, 0, 1, 3, 5, 2, 4])[:, None]
    x[~mask] = float("nan")
    return x, mask


def test_sums_are_those_of_the_selected_tokens(batch):
    x, mask = batch
    selected = [x[i, j].item() for i in range(7) for j in range(5) if mask[i, j]]
    assert masked_sum(x, mask).item() == pytest.approx(sum(selected), rel=1e-12)
    rows = masked_sum(x, mask, dim=1)
    assert rows[1] == 0  # the empty response
    assert rows[3].item() == pytest.approx(x[3, :3].sum().item(), rel=1e-12)


def test_whitened_tokens_have_mean_0_and_unbiased_variance_1(batch):
    x, mask = batch
    white = whiten(x, mask, moments(x, mask))
    assert white[mask].mean().abs() < 1e-10
    assert abs(white[mask].var() - 1) < 1e-8
    assert (white[~mask] == 0).all()


def test_moments_add_over_a_split_of_the_rows(batch):
    x, mask = batch
    whole = whiten(x, mask, moments(x, mask))
    total = sum(moments(x[a:b], mask[a:b]) for a, b in [(0, 2), (2, 3), (3, 7)])
    parts = torch.cat([whiten(x[a:b], mask[a:b], total) for a, b in [(0, 4), (4, 7)]])
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-10)


@pytest.mark.parametrize("num_tokens", [0, 1])
def test_too_few_tokens_to_whiten_give_no_nan(num_tokens):
    x = torch.full((1, 2), 3.0)
    mask = torch.arange(2)[None, :] < num_tokens
    assert whiten(x, mask, moments(x, mask)).tolist() == [[0.0, 0.0]]


def test_whitening_keeps_the_dtype(batch):
    x, mask = batch
    assert whiten(x.float(), mask, moments(x.float(), mask)).dtype == torch.float32

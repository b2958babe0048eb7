"""The entropy bonus, and the estimate that needs no vocabulary."""

from __future__ import annotations

import pytest
import torch
from ragged import F64, ragged
from test_policy import weights_of

from megarl.algorithms.entropy import entropy_loss, sampled_entropy


def test_the_bonus_is_a_weighted_sum_with_a_sign():
    batch = ragged(0)
    entropy, weights = -batch.old_logprobs, weights_of(batch.mask)
    want = sum(e for row in batch.inside(entropy) for e in row) / int(batch.mask.sum())
    got = entropy_loss(entropy, batch.mask, weights, 0.01)
    assert got.item() == pytest.approx(-0.01 * want, rel=1e-6)


def test_gradcheck_of_the_bonus():
    logits = torch.randn(1, 4, 5, dtype=F64, requires_grad=True)
    mask, weights = torch.tensor([[True, True, False, True]]), torch.rand(1, 4, dtype=F64)

    def loss(x):
        logp = x.log_softmax(-1)
        return entropy_loss(-(logp.exp() * logp).sum(-1), mask, weights, 0.3)

    assert torch.autograd.gradcheck(loss, logits)


def test_the_estimate_is_unbiased():
    """Over the whole vocabulary its expectation is the entropy."""
    p = torch.randn(50, dtype=F64, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    estimates = sampled_entropy(p[None], torch.ones(1, 50, dtype=torch.bool))[0]
    assert (p.exp() * estimates).sum().item() == pytest.approx(-(p.exp() * p).sum().item())


def test_the_estimate_keeps_out_padding_gradients_and_infinities():
    logprobs = torch.tensor([[-1.0, -torch.inf, torch.nan]], requires_grad=True)
    got = sampled_entropy(logprobs, torch.tensor([[True, True, False]]))
    assert got.tolist() == [[1.0, 1e4, 0.0]] and not got.requires_grad

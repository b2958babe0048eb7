"""The vocab-parallel head against torch's log_softmax and autograd.

Proven: log-probs, entropy and both gradients equal a plain [n, V] computation in float64, up to the
rounding of fp32 logits, for any chunk size, temperature, padding and split of the vocabulary over
two ranks. Not shown: bf16 inputs, GPUs, memory.
"""

from __future__ import annotations

from typing import Any

import jobs_head
import pytest
import torch
from cluster import Cluster
from torch import Tensor

from megarl.models.logprob import VocabShard, token_logprobs

TOKENS, HIDDEN, PADDED, VALID = 37, 16, 64, 50


class OneRank:
    """A process group of one, without a process group."""

    def size(self) -> int:
        return 1


SHARD: Any = VocabShard(0, VALID, OneRank())  # type: ignore[arg-type]


def inputs(scale: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """hidden [n, H], weight [V, H] with junk in its padding, targets [n]."""
    dice = torch.Generator().manual_seed(11)
    hidden = torch.randn(TOKENS, HIDDEN, generator=dice) * scale
    weight = torch.randn(PADDED, HIDDEN, generator=dice)
    return hidden, weight, torch.randint(0, VALID, (TOKENS,), generator=dice)


def plain(
    hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float, valid: int = VALID
) -> list[Tensor]:
    """Log-probs, entropies, gradients of hidden and weight; float64, from the whole logits."""
    leaves = [hidden.detach().double().requires_grad_(), weight.detach().double().requires_grad_()]
    logp = (leaves[0] @ leaves[1][:valid].t() / temperature).log_softmax(-1)
    entropy = torch.distributions.Categorical(logits=logp).entropy()
    outputs = logp[torch.arange(TOKENS), targets], entropy
    return [*(x.detach() for x in outputs), *gradients(outputs, leaves)]


def gradients(outputs: tuple[Tensor, Tensor], leaves: list[Tensor]) -> list[Tensor]:
    """Gradients of a loss that weighs every log-prob and every entropy differently."""
    loss = (torch.cat(outputs) * WEIGHTS).sum()
    return list(torch.autograd.grad(loss, leaves))


WEIGHTS = torch.linspace(-1, 2, 2 * TOKENS)


def check(found: list[Tensor], expected: list[Tensor]) -> None:
    """Equal up to two roundings of an fp32 logit, scaled by the size of what depends on it."""
    largest_logit = float(expected[0].abs().max())
    rounding = 2 * torch.finfo(torch.float32).eps * largest_logit
    for one, wanted in zip(found, expected, strict=True):
        worst = (one.double() - wanted).abs().max()
        assert worst <= rounding * max(1.0, float(wanted.abs().max()))


def ours(
    hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float, chunk_tokens: int
) -> list[Tensor]:
    """The same four by the head."""
    leaves = [hidden.requires_grad_(), weight.requires_grad_()]
    outputs = token_logprobs(hidden, weight, targets, SHARD, temperature, True, chunk_tokens)
    return [*outputs, *gradients(outputs, leaves)]


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("chunk_tokens", [1, 8, 37, 1024])
def test_values_and_gradients(chunk_tokens: int, temperature: float) -> None:
    check(ours(*inputs(), temperature, chunk_tokens), plain(*inputs(), temperature))


def test_padding_gets_no_probability_and_no_gradient() -> None:
    hidden, weight, targets = inputs()
    weight[VALID:] = 1e4  # would take all the probability
    weight.requires_grad_()
    logprobs, entropy = token_logprobs(hidden, weight, targets, SHARD, 1.0, True)
    (gradient,) = torch.autograd.grad(logprobs.sum() + entropy.sum(), [weight])
    assert bool((gradient[VALID:] == 0).all()) and bool(gradient[:VALID].abs().sum() > 0)
    assert bool(logprobs.isfinite().all()) and bool((entropy > 0).all())


def test_extreme_logits() -> None:
    """Probabilities of 0 and 1 to fp32: no NaN in values or gradients."""
    found = ours(*inputs(scale=200.0), 1.0, 8)
    assert all(bool(x.isfinite().all()) for x in found)
    check(found, plain(*inputs(scale=200.0), 1.0))


def test_entropy_only_when_asked() -> None:
    hidden, weight, targets = inputs()
    logprobs, entropy = token_logprobs(hidden.requires_grad_(), weight, targets, SHARD)
    assert bool((entropy == 0).all())
    asked, _ = token_logprobs(hidden, weight, targets, SHARD, with_entropy=True)
    assert torch.equal(logprobs, asked)
    found, expected = (torch.autograd.grad(x.sum(), hidden)[0] for x in (logprobs, asked))
    assert torch.equal(found, expected)


def test_no_tokens() -> None:
    _, weight, _ = inputs()
    none = torch.zeros(0, dtype=torch.int64)
    logprobs, entropy = token_logprobs(torch.zeros(0, HIDDEN), weight, none, SHARD, 1.0, True)
    assert logprobs.shape == entropy.shape == (0,)


@pytest.mark.dist
@pytest.mark.parametrize("valid", [50, 30])
def test_split_over_two_ranks(valid: int, cluster: Cluster) -> None:
    """Both ranks get the values; gradients of hidden add up, those of the weight are the shards'.

    valid 30: the second rank holds nothing but padding.
    """
    hidden, weight, targets = inputs()
    targets = targets % valid
    answers = cluster.run(2, jobs_head.head_of_rank, hidden, weight, targets, valid, WEIGHTS)
    expected = plain(hidden, weight, targets, 0.8, valid)
    of_hidden = answers[0][2] + answers[1][2]
    of_weight = torch.cat([answer[3] for answer in answers])
    for logprobs, entropies, _, _ in answers:
        check([logprobs, entropies, of_hidden, of_weight], expected)

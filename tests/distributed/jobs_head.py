"""The log-prob head on one rank's part of the vocabulary."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor
from worker import Rank

from megarl.models.logprob import VocabShard, token_logprobs


def head_of_rank(
    rank: Rank, hidden: Tensor, weight: Tensor, targets: Tensor, valid: int, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Log-probs, entropies, gradient of hidden and of this rank's rows of the weight."""
    hidden, own = hidden.requires_grad_(), weight.chunk(2)[rank.rank].clone().requires_grad_()
    start = rank.rank * len(own)
    shard = VocabShard(start, min(max(valid - start, 0), len(own)), dist.group.WORLD)
    logprobs, entropy = token_logprobs(hidden, own, targets, shard, 0.8, True, chunk_tokens=10)
    loss = (torch.cat([logprobs, entropy]) * weights).sum()
    of_hidden, of_weight = torch.autograd.grad(loss, [hidden, own])
    return logprobs.detach(), entropy.detach(), of_hidden, of_weight

"""Vocab-parallel log-probabilities and entropy that never hold the logits of all tokens.

The head works on chunks of tokens; backward computes each chunk's logits again. Memory is
[chunk, V / TP] in fp32, whatever the batch. Shapes: n tokens, H hidden, V' rows of the head here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

CHUNK_TOKENS = 1024


@dataclass(frozen=True, slots=True)
class VocabShard:
    """Which rows of the vocabulary this rank's head holds."""

    start: int
    """Id of the first row."""
    valid: int
    """Rows that are real tokens; those behind are padding and get probability 0."""
    group: dist.ProcessGroup
    """Tensor-parallel group."""


def token_logprobs(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    shard: VocabShard,
    temperature: float = 1.0,
    with_entropy: bool = False,
    chunk_tokens: int = CHUNK_TOKENS,
) -> tuple[Tensor, Tensor]:
    """Log-probability of each target, and the entropy of each position, in nats.

    hidden [n, H], equal on all tensor ranks; weight [V', H]; targets int64 [n]. Logits are divided
    by `temperature`. Returns two fp32 [n]; the entropy is 0 unless `with_entropy`. The gradient of
    `hidden` is this rank's share of the sum over tensor ranks, as after Megatron's
    `copy_to_tensor_model_parallel_region`.
    """
    logprobs, entropy = _ChunkedHead.apply(
        hidden, weight, targets, shard, temperature, with_entropy, chunk_tokens
    )
    return logprobs, entropy


def _chunk_logits(hidden: Tensor, weight: Tensor, shard: VocabShard, temperature: float) -> Tensor:
    logits = (hidden @ weight.t()).float()
    if temperature != 1.0:
        logits.div_(temperature)
    if shard.valid < logits.shape[1]:
        logits[:, shard.valid :] = float("-inf")
    return logits


def _local_targets(targets: Tensor, shard: VocabShard) -> tuple[Tensor, Tensor]:
    """Row of each target in this shard (0 where it is elsewhere), and whether it is here."""
    local = targets - shard.start
    here = (local >= 0) & (local < shard.valid)
    return local.masked_fill(~here, 0), here


class _ChunkedHead(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        shard: VocabShard,
        temperature: float,
        with_entropy: bool,
        chunk_tokens: int,
    ) -> tuple[Tensor, Tensor]:
        # rows: log of the sum of exponentials, target logit, entropy
        stats = hidden.new_empty(3, hidden.shape[0], dtype=torch.float32)
        for start in range(0, hidden.shape[0], chunk_tokens):
            rows = slice(start, start + chunk_tokens)
            logits = _chunk_logits(hidden[rows], weight, shard, temperature)
            _chunk_stats(logits, targets[rows], shard, with_entropy, stats[:, rows])
        lse, target_logit, entropy = stats
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(hidden, weight, targets, lse, entropy)
        ctx.settings = (shard, temperature, with_entropy, chunk_tokens)
        return target_logit - lse, entropy

    @staticmethod
    def backward(  # type: ignore[override]
        ctx: Any, grad_logprobs: Tensor | None, grad_entropy: Tensor | None
    ) -> tuple[Any, ...]:
        hidden, weight, targets, lse, entropy = ctx.saved_tensors
        shard, temperature, _, chunk_tokens = ctx.settings
        if grad_logprobs is None:
            grad_logprobs = torch.zeros_like(lse)
        grad_hidden = torch.empty_like(hidden)
        grad_weight = torch.zeros_like(weight, dtype=torch.float32)
        for start in range(0, hidden.shape[0], chunk_tokens):
            rows = slice(start, start + chunk_tokens)
            logits = _chunk_logits(hidden[rows], weight, shard, temperature)
            logp = logits.sub_(lse[rows, None])
            probs = logp.exp()
            # d logp_t / dz_j = [j = t] - p_j ;  dH / dz_j = -p_j (log p_j + H)
            grad = probs * -grad_logprobs[rows, None]
            if grad_entropy is not None:
                tilt = (logp + entropy[rows, None]).masked_fill_(probs == 0, 0.0)
                grad -= grad_entropy[rows, None] * probs * tilt
            local, here = _local_targets(targets[rows], shard)
            grad.scatter_add_(1, local[:, None], (grad_logprobs[rows] * here)[:, None])
            grad = (grad / temperature).to(weight.dtype)
            grad_hidden[rows] = grad @ weight
            grad_weight += grad.t() @ hidden[rows]
        return grad_hidden, grad_weight.to(weight.dtype), None, None, None, None, None


def _chunk_stats(
    logits: Tensor, targets: Tensor, shard: VocabShard, with_entropy: bool, out: Tensor
) -> None:
    parallel = shard.group.size() > 1
    peak = logits.max(dim=1).values
    if parallel:
        dist.all_reduce(peak, op=dist.ReduceOp.MAX, group=shard.group)
    shifted = logits - peak[:, None]
    weights = shifted.exp() if with_entropy else shifted.exp_()
    local, here = _local_targets(targets, shard)
    partial = torch.zeros(3, logits.shape[0], dtype=torch.float32, device=logits.device)
    partial[0] = weights.sum(dim=1)
    partial[1] = logits.gather(1, local[:, None])[:, 0].masked_fill(~here, 0.0)
    if with_entropy:
        # Below the peak: the mean of whole logits would lose the entropy's last digits.
        partial[2] = (weights * shifted.masked_fill_(weights == 0, 0.0)).sum(dim=1)
    if parallel:
        dist.all_reduce(partial, group=shard.group)
    out[0] = peak + partial[0].log()
    out[1] = partial[1]
    out[2] = partial[0].log() - partial[2] / partial[0] if with_entropy else 0.0

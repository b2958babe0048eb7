"""Statistics of several answers to each question."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

from megarl.errors import ConfigError


def pass_at_k(num_samples: Tensor, num_right: Tensor, k: int) -> Tensor:
    """float64 [Q]: unbiased estimate of the chance that one of k samples is right, per question.

    Chen et al. 2021 (arXiv:2107.03374), eq. 1: 1 - C(n - c, k) / C(n, k), as the product of
    1 - k / j over j = n - c + 1 ... n, which does not overflow. num_samples n, num_right c: int
    [Q]; ConfigError for a k that is not within 1 and n of every question, or c outside 0 and n.
    """
    n, c = num_samples.to(torch.int64), num_right.to(torch.int64)
    least = int(n.min()) if n.numel() else k
    if not 1 <= k <= least:
        raise ConfigError(
            f"pass@{k} of {least} samples: k must be within 1 and the samples of each question"
        )
    if bool(((c < 0) | (c > n)).any()):
        raise ConfigError("pass@k: a question has more right answers than samples, or fewer than 0")
    most = int(n.max()) if n.numel() else 0
    j = torch.arange(1, most + 1, device=n.device)
    within = (j > (n - c)[:, None]) & (j <= n[:, None])
    factor = torch.where(within, (1 - k / j.double()).clamp(min=0), 1.0)
    return 1 - factor.prod(-1)


def majority_vote(answers: Sequence[Hashable | None], right: Sequence[bool]) -> float:
    """Whether the most frequent answer to one question is right, from 0 to 1.

    maj@n of self-consistency, Wang et al. 2023 (arXiv:2203.11171). answers: what was read from each
    sample, None where nothing could be: it has no vote. right: the verdict on each sample. Of
    answers that are equally frequent, and of verdicts that differ on one answer, the mean counts,
    so the order of samples does not. 0 where nobody votes. ValueError for unequal numbers.
    """
    if len(answers) != len(right):
        raise ValueError(f"{len(answers)} answers, {len(right)} verdicts")
    votes = Counter(answer for answer in answers if answer is not None)
    if not votes:
        return 0.0
    most = max(votes.values())
    leaders = {answer for answer, count in votes.items() if count == most}
    verdicts = [v for a, v in zip(answers, right, strict=True) if a is not None and a in leaders]
    return sum(verdicts) / len(verdicts)


def pass_at_ks(num_samples: int, wanted: Sequence[int] = ()) -> tuple[int, ...]:
    """The k of pass@k, ascending, for so many samples of each question.

    wanted, or without any: 1, the powers of two below num_samples, and num_samples; () where there
    are no samples.
    """
    powers = (1 << power for power in range(num_samples.bit_length()))
    usual = {k for k in powers if k < num_samples} | ({num_samples} if num_samples else set())
    return tuple(sorted(set(wanted) or usual))

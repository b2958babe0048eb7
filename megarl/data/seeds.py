"""Seeds of samples: hashes, so that they depend on no engine, rank or layout."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence


def stable_hash(*parts: int | str) -> int:
    """63-bit hash of the parts, the same on every machine and in every version."""
    text = "\0".join(f"{type(part).__name__}:{part}" for part in parts)
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def sample_seed(run_seed: int, step: int, prompt_id: int, sample_index: int) -> int:
    """63-bit seed of one sample."""
    return stable_hash(run_seed, step, prompt_id, sample_index)


def evaluation_seed(run_seed: int, prompt_id: int, sample_index: int) -> int:
    """63-bit seed of one sample for a held-out prompt, the same in every evaluation of a run."""
    return stable_hash(run_seed, "evaluation", prompt_id, sample_index)


def step_seeds(
    run_seed: int, step: int, prompt_ids: Sequence[int], num_samples: int
) -> list[list[int]]:
    """Seeds of a whole step, [prompt][sample]: all different.

    A batch over an epoch's border can hold a prompt twice; the second occurrence goes on counting
    samples where the first one stopped, or the two would get equal answers.
    """
    seen: Counter[int] = Counter()
    seeds = []
    for prompt_id in prompt_ids:
        first = seen[prompt_id] * num_samples
        seen[prompt_id] += 1
        indices = range(first, first + num_samples)
        seeds.append([sample_seed(run_seed, step, prompt_id, index) for index in indices])
    return seeds

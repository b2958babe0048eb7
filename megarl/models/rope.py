"""Rotary frequencies as Hugging Face configs ask for them (transformers 4 and 5 spellings)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from megarl.errors import ConfigError

NUMBERS = {
    "linear": ("factor",),
    "llama3": (
        "factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"
    ),
}  # fmt: skip
"""Rope type -> what its scaling needs to know."""


def rope_parameters(hf: Mapping[str, Any]) -> dict[str, Any]:
    """`rope_theta`, `rope_type` and its numbers, wherever the config keeps them."""
    found = dict(hf.get("rope_scaling") or {})
    found.update(hf.get("rope_parameters") or {})
    found.setdefault("rope_theta", hf.get("rope_theta", 10000.0))
    found.setdefault("rope_type", found.get("type", "default"))
    return found


def inverse_frequencies(hf: Mapping[str, Any], head_dim: int) -> Tensor:
    """Inverse frequencies, fp32 [head_dim / 2].

    Types: default, linear (position interpolation, Chen et al. 2023) and llama3 (wavelengths
    over `original_max_position_embeddings / low_freq_factor` slowed down by `factor`, those under
    `/ high_freq_factor` kept, a ramp between). Raises ConfigError for others.
    """
    rope = rope_parameters(hf)
    exponent = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
    inverse = 1.0 / (float(rope["rope_theta"]) ** exponent)
    kind = rope["rope_type"]
    if kind == "default":
        return inverse
    if kind not in NUMBERS:
        raise ConfigError(f"rope_type is {kind!r}; known: default, {', '.join(NUMBERS)}")
    missing = [name for name in NUMBERS[kind] if name not in rope]
    if missing:
        raise ConfigError(
            f"rope_type {kind} needs {', '.join(missing)} in config.json's rope scaling"
        )
    return inverse / float(rope["factor"]) if kind == "linear" else _llama3(inverse, rope)


def _llama3(inverse: Tensor, rope: Mapping[str, Any]) -> Tensor:
    factor, low, high = (float(rope[k]) for k in ("factor", "low_freq_factor", "high_freq_factor"))
    turns = float(rope["original_max_position_embeddings"]) * inverse / (2 * math.pi)
    keep = ((turns - low) / (high - low)).clamp(0.0, 1.0)
    return (1 - keep) * inverse / factor + keep * inverse

"""What the parts of `megarl bench reshard` share: the model, the world, a way."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from megarl.mesh.run_plan import RunPlan
from megarl.mesh.universe import Universe
from megarl.reshard.executor import Resharder


@dataclass
class World:
    """What the ways have in common."""

    universe: Universe
    run: RunPlan
    actor: Any
    """MegatronEngine on the actor's mesh."""
    engine: Any
    """VllmEngine."""
    resharder: Resharder
    dtype: torch.dtype


@dataclass(frozen=True, slots=True)
class Way:
    """One way to bring the weights over."""

    run: Callable[[], object]
    received_bytes: int
    """By this rank, over the wire."""
    kept_bytes: int = 0
    """Buffers that it keeps between syncs."""


def config_json(arguments: argparse.Namespace) -> dict[str, Any]:
    """A Llama of the asked size, two queries a key."""
    heads = max(arguments.hidden // 64, 1)
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": arguments.hidden,
        "intermediate_size": arguments.ffn,
        "num_hidden_layers": arguments.layers,
        "num_attention_heads": heads,
        "num_key_value_heads": max(heads // 2, 1),
        "head_dim": 64,
        "vocab_size": arguments.vocab,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "bos_token_id": None,
        "eos_token_id": 1,
    }

"""The vocabulary of a family's table: a rule per local parameter, dims by name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["vocab", "qkv", "gate_up", "row", "replicated"]
"""How tensor parallelism splits: vocab rows; query groups; gate above up; columns; not at all."""
Place = Literal["first", "layer", "last"]
"""Where pipeline parallelism puts it: embedding stage, the layer's stage, head stage."""
Dim = Literal["vocab", "hidden", "ffn", "q", "kv", "head", "experts", "expert_ffn", "one"]
"""q: query heads x head_dim rows; kv: KV heads x head_dim; head: head_dim."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One local parameter and the Hugging Face tensors stacked in it.

    {n} in a name is the layer's number, {e} the expert's.
    """

    kind: Kind
    place: Place
    hf: tuple[str, ...]
    """Hugging Face names, in the order in which they are stacked."""
    dims: tuple[tuple[Dim, ...], ...]
    """Dims of each Hugging Face tensor."""
    megatron: str
    """Name in Megatron's local layer spec."""
    vllm: str
    te: str = ""
    """Name in Megatron's TransformerEngine spec, where it differs."""
    experts: bool = False
    """Whether every expert has one: split by expert parallelism, in vLLM stacked to one tensor."""


@dataclass(frozen=True, slots=True)
class Family:
    """A model family: how to recognize it, its configuration's defaults, its rules."""

    name: str
    """Its `model_type` in config.json."""
    architectures: tuple[str, ...]
    rules: tuple[Rule, ...]
    """In the order of the forward pass; `lm_head.weight` is dropped where it is tied."""
    default_kv_heads: int | None = None
    """Where config.json is silent; None: as many as query heads."""
    default_head_dim: int | None = None
    """Where config.json is silent; None: hidden size / query heads."""
    experts_keys: tuple[str, ...] = ()
    """Where config.json has the number of experts, the first that is there; none: a dense model."""
    expert_ffn_key: str = "intermediate_size"
    whole_ends_in_vllm: bool = False
    """Whether vLLM builds embedding, final norm and head on every pipeline stage."""

"""What a model's placement depends on, and the rules that are in force for it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from math import lcm
from typing import Any, NamedTuple

from megarl.errors import ConfigError
from megarl.layout.families import FAMILIES, blocks
from megarl.layout.families.rule import Dim, Family, Rule

VOCAB_MULTIPLE = 64
"""The vocabulary is padded to a multiple of this: vLLM's own, and that of every TP dividing it."""


@dataclass(frozen=True, slots=True)
class ModelShape:
    """Everything about a decoder that decides where its weights lie."""

    family: str
    num_layers: int
    hidden_size: int
    ffn_hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    """Rows of the embedding in the files."""
    padded_vocab_size: int
    """Rows of the embedding in Megatron."""
    tied: bool = False
    """The output layer is the embedding."""
    qkv_bias: bool = False
    qk_norm: bool = False
    num_experts: int = 0
    """Experts of each layer; 0: a dense model."""
    expert_ffn_size: int = 0
    """Hidden size of one expert."""
    scalar_head: str | None = None
    """Hugging Face name of the [1, hidden] head of a value or reward model, which has no lm_head"""

    def dim(self, name: Dim) -> int:
        """Size of a named dim in the files."""
        sizes: dict[Dim, int] = {
            "vocab": self.vocab_size,
            "hidden": self.hidden_size,
            "ffn": self.ffn_hidden_size,
            "q": self.num_heads * self.head_dim,
            "kv": self.num_kv_heads * self.head_dim,
            "head": self.head_dim,
            "experts": self.num_experts,
            "expert_ffn": self.expert_ffn_size,
            "one": 1,
        }
        return sizes[name]


def model_shape_from_hf(config: Mapping[str, Any], *, tp: int = 1) -> ModelShape:
    """Read a config.json dict; the vocabulary is padded to a multiple of lcm(64, tp).

    A `...ForSequenceClassification` with one label is a value or reward model ("score.weight").
    Raises ConfigError for an unknown architecture, biases that no rule covers, missing keys.
    """
    family = _family_in(config)
    heads = _positive(config, "num_attention_heads")
    hidden = _positive(config, "hidden_size")
    vocab = _positive(config, "vocab_size")
    for key in ("attention_bias", "mlp_bias"):
        if config.get(key):
            raise ConfigError(f"config.json: {key} is true: {family.name} is supported without it")
    given = config.get("head_dim") is not None
    head_dim = _positive(config, "head_dim") if given else family.default_head_dim
    if head_dim is None:
        if hidden % heads:
            raise ConfigError(
                f"config.json: num_attention_heads {heads} does not divide hidden_size {hidden}, "
                "and head_dim is not given"
            )
        head_dim = hidden // heads
    kv = {"num_key_value_heads": config.get("num_key_value_heads", family.default_kv_heads)}
    kv_heads = heads if kv["num_key_value_heads"] is None else _positive(kv, *kv)
    if heads % kv_heads:
        raise ConfigError(
            f"config.json: num_key_value_heads {kv_heads} does not divide "
            f"num_attention_heads {heads}"
        )
    experts = _num_experts(config, family)
    multiple = lcm(VOCAB_MULTIPLE, tp)
    shape = ModelShape(
        family=family.name,
        num_layers=_positive(config, "num_hidden_layers"),
        hidden_size=hidden,
        ffn_hidden_size=_positive(config, "intermediate_size"),
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        vocab_size=vocab,
        padded_vocab_size=-(-vocab // multiple) * multiple,
        tied=bool(config.get("tie_word_embeddings", False)),
        qkv_bias=blocks.QKV_BIAS in family.rules,
        qk_norm=blocks.Q_NORM in family.rules,
        num_experts=experts,
        expert_ffn_size=_positive(config, family.expert_ffn_key) if experts else 0,
    )
    return with_scalar_head(shape) if _is_scalar(config) else shape


def with_scalar_head(shape: ModelShape, name: str = "score.weight") -> ModelShape:
    """The same body with a head of one number per token: a value or reward model."""
    return replace(shape, scalar_head=name, tied=False)


def family_of(shape: ModelShape) -> Family:
    """The family of a shape."""
    return next(family for family in FAMILIES if family.name == shape.family)


def rules_for(shape: ModelShape) -> tuple[Rule, ...]:
    """The family's rules that are in force: lm_head where there is one, or the scalar head."""
    rules = family_of(shape).rules
    if shape.scalar_head is None and not shape.tied:
        return rules
    rules = tuple(rule for rule in rules if rule.hf != ("lm_head.weight",))
    return (*rules, _scalar_rule(shape.scalar_head)) if shape.scalar_head else rules


def hf_tensors(shape: ModelShape) -> dict[str, tuple[int, ...]]:
    """Full Hugging Face tensor names and shapes, with the true (unpadded) vocabulary."""
    tensors: dict[str, tuple[int, ...]] = {}
    everything = range(shape.num_layers), range(shape.num_experts)
    for rule, layer, expert in expand(rules_for(shape), *everything, first=True, last=True):
        for name, dims in zip(rule.hf, rule.dims, strict=True):
            tensors[name.format(n=layer, e=expert)] = tuple(shape.dim(dim) for dim in dims)
    return tensors


class Slot(NamedTuple):
    """A rule at one of the places where it is in force; numbers are those of the whole model."""

    rule: Rule
    layer: int
    expert: int
    """0 where the rule is not about experts."""


def expand(
    rules: tuple[Rule, ...], layers: range, experts: range, *, first: bool, last: bool
) -> Iterator[Slot]:
    """Each rule with each of its layers and experts, in the order of the forward pass."""
    if first:
        yield from (Slot(rule, 0, 0) for rule in rules if rule.place == "first")
    for layer in layers:
        for rule in rules:
            if rule.place == "layer":
                numbers = experts if rule.experts else range(1)
                yield from (Slot(rule, layer, expert) for expert in numbers)
    if last:
        yield from (Slot(rule, 0, 0) for rule in rules if rule.place == "last")


def _scalar_rule(name: str) -> Rule:
    return Rule(
        kind="replicated",
        place="last",
        hf=(name,),
        dims=(("one", "hidden"),),
        megatron="value_head.weight",
        vllm=name,
    )


def _family_in(config: Mapping[str, Any]) -> Family:
    architectures = config.get("architectures") or ()
    for family in FAMILIES:
        if any(name in family.architectures for name in architectures):
            return family
        if not architectures and config.get("model_type") == family.name:
            return family
    known = ", ".join(name for family in FAMILIES for name in family.architectures)
    raise ConfigError(
        f"config.json: architectures {list(architectures)}, model_type "
        f"{config.get('model_type')!r} is not a known model; known: {known}"
    )


def _num_experts(config: Mapping[str, Any], family: Family) -> int:
    if not family.experts_keys:
        return 0
    for key, plain in (("decoder_sparse_step", 1), ("mlp_only_layers", [])):
        if config.get(key, plain) != plain:
            raise ConfigError(
                f"config.json: {key} is {config[key]!r}: {family.name} is supported with experts "
                "in every layer"
            )
    key = next((key for key in family.experts_keys if key in config), family.experts_keys[0])
    return _positive(config, key)


def _is_scalar(config: Mapping[str, Any]) -> bool:
    names = config.get("architectures") or ()
    if not any(name.endswith("ForSequenceClassification") for name in names):
        return False
    labels = config.get("num_labels", len(config.get("id2label") or {}) or 1)
    if labels != 1:
        raise ConfigError(f"config.json: {labels} labels: a value or reward model has one")
    return True


def _positive(config: Mapping[str, Any], key: str) -> int:
    value = config.get(key)
    if not isinstance(value, int) or value < 1:
        raise ConfigError(f"config.json: {key} is {value!r}: a positive integer is needed")
    return value

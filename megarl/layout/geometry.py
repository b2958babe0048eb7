"""From a rule to local pieces: what both sides share; they differ in the order of qkv rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from megarl.errors import ConfigError
from megarl.layout.box import Box, contiguous_strides
from megarl.layout.families.rule import Rule
from megarl.layout.placement import Piece
from megarl.layout.rules import ModelShape, Slot


class Rows(NamedTuple):
    """Rows [lo, hi) of one of a rule's tensors; a local parameter is a stack of these."""

    which: int
    """Index in the rule's Hugging Face names."""
    lo: int
    hi: int


class Shard(NamedTuple):
    """Where a rank stands, and what of the sides' conventions the geometry depends on."""

    tp_rank: int
    tp_size: int
    vocab_rows: int
    """Rows of the padded vocabulary."""
    padded_vocab: bool
    """Whether padding rows are part of the tensor or of nothing."""
    qkv_rows: Callable[[ModelShape, int, int], list[Rows]]
    """(shape, tp_rank, tp_size) -> the rows of the fused qkv parameter."""
    expert_tp_rank: int
    expert_tp_size: int
    """Tensor parallelism inside one expert."""
    experts: range
    """The experts that the rank holds."""

    def tp_of(self, rule: Rule) -> tuple[int, int]:
        """(rank, size) of the tensor parallelism that splits a rule's parameters."""
        if rule.experts:
            return self.expert_tp_rank, self.expert_tp_size
        return self.tp_rank, self.tp_size


def local_shape(rule: Rule, shape: ModelShape, shard: Shard) -> tuple[int, ...]:
    """Shape of the local parameter, padding included; of one expert, where there are several."""
    columns = tuple(shape.dim(dim) for dim in rule.dims[0][1:])
    if rule.kind == "row":
        return shape.dim(rule.dims[0][0]), columns[0] // shard.tp_of(rule)[1]
    return sum(hi - lo for _, lo, hi in _stack(rule, shape, shard)), *columns


def local_pieces(
    slot: Slot, buffer: str, shape: ModelShape, shard: Shard, start: int = 0
) -> list[Piece]:
    """The pieces of one local parameter; none where the rank holds nothing but padding.

    start: element of the buffer at which the parameter begins.
    """
    rule = slot.rule
    local = local_shape(rule, shape, shard)
    strides = contiguous_strides(local)
    names = [name.format(n=slot.layer, e=slot.expert) for name in rule.hf]
    if rule.kind == "row":
        lo = shard.tp_of(rule)[0] * local[1]
        box = Box((0, lo), (local[0], lo + local[1]))
        return [Piece(names[0], box, buffer, start, strides)]
    pieces, row = [], 0
    zeros = (0,) * (len(local) - 1)
    for which, lo, hi in _stack(rule, shape, shard):
        end = hi
        if rule.kind == "vocab" and not shard.padded_vocab:
            end = min(hi, shape.vocab_size)
        if lo < end:
            box = Box((lo, *zeros), (end, *local[1:]))
            pieces.append(Piece(names[which], box, buffer, start + row * strides[0], strides))
        row += hi - lo
    return pieces


def _stack(rule: Rule, shape: ModelShape, shard: Shard) -> list[Rows]:
    tp_rank, tp_size = shard.tp_of(rule)
    if rule.kind == "qkv":
        return shard.qkv_rows(shape, tp_rank, tp_size)
    rows = shard.vocab_rows if rule.kind == "vocab" else shape.dim(rule.dims[0][0])
    if rule.kind == "replicated":
        return [Rows(0, 0, rows)]
    part = rows // tp_size
    lo = tp_rank * part
    return [Rows(which, lo, lo + part) for which in range(len(rule.hf))]


def check_divides(side: str, tp_size: int, **sizes: int) -> None:
    """Raise ConfigError, with the numbers, for the first size that tp_size does not divide."""
    for name, size in sizes.items():
        if size % tp_size:
            raise ConfigError(
                f"{side}: tensor-parallel size {tp_size} does not divide {name} {size}"
            )


def check_rank(side: str, what: str, rank: int, size: int) -> None:
    """Raise ConfigError unless 0 <= rank < size."""
    if not 0 <= rank < size:
        raise ConfigError(f"{side}: {what} rank {rank} is not in 0..{size - 1}")

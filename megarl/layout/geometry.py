"""From a rule to local pieces: what both sides share; they differ in the order of qkv rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from megarl.errors import ConfigError
from megarl.layout.box import Box, contiguous_strides
from megarl.layout.families.rule import Rule
from megarl.layout.placement import Piece
from megarl.layout.rules import ModelShape


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


def local_shape(rule: Rule, shape: ModelShape, shard: Shard) -> tuple[int, ...]:
    """Shape of the local parameter, padding included."""
    columns = tuple(shape.dim(dim) for dim in rule.dims[0][1:])
    if rule.kind == "row":
        return shape.dim(rule.dims[0][0]), columns[0] // shard.tp_size
    return sum(hi - lo for _, lo, hi in _stack(rule, shape, shard)), *columns


def local_pieces(
    rule: Rule, layer: int, buffer: str, shape: ModelShape, shard: Shard
) -> list[Piece]:
    """The pieces of one local parameter; none where the rank holds nothing but padding."""
    local = local_shape(rule, shape, shard)
    strides = contiguous_strides(local)
    if rule.kind == "row":
        lo = shard.tp_rank * local[1]
        box = Box((0, lo), (local[0], lo + local[1]))
        return [Piece(rule.hf[0].format(n=layer), box, buffer, 0, strides)]
    pieces, row = [], 0
    zeros = (0,) * (len(local) - 1)
    for which, lo, hi in _stack(rule, shape, shard):
        end = hi
        if rule.kind == "vocab" and not shard.padded_vocab:
            end = min(hi, shape.vocab_size)
        if lo < end:
            box = Box((lo, *zeros), (end, *local[1:]))
            name = rule.hf[which].format(n=layer)
            pieces.append(Piece(name, box, buffer, row * strides[0], strides))
        row += hi - lo
    return pieces


def _stack(rule: Rule, shape: ModelShape, shard: Shard) -> list[Rows]:
    if rule.kind == "qkv":
        return shard.qkv_rows(shape, shard.tp_rank, shard.tp_size)
    rows = shard.vocab_rows if rule.kind == "vocab" else shape.dim(rule.dims[0][0])
    if rule.kind == "replicated":
        return [Rows(0, 0, rows)]
    part = rows // shard.tp_size
    lo = shard.tp_rank * part
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

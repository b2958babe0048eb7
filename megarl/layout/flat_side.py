"""Flat shards, as ZeRO-3 and FSDP keep them: a rank holds a range of a tensor's row-major elements.

Such a range is not a box, but at most 2k - 1 of them for k dims: whole rows in the middle, and at
either end what is left of a row, which is a flat range of one dim less.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

from megarl.errors import ConfigError
from megarl.layout.box import Box, contiguous_strides
from megarl.layout.placement import Piece, Placement


def flat_boxes(shape: Sequence[int], start: int, stop: int) -> list[Box]:
    """The boxes that make up elements [start, stop) of a row-major tensor, in their order.

    At most 2k - 1 boxes for k dims; each is contiguous in the range. Raises ConfigError for a range
    that is not inside the tensor.
    """
    sizes = tuple(shape)
    if not 0 <= start <= stop <= prod(sizes):
        raise ConfigError(
            f"flat range [{start}, {stop}) is not inside a tensor of shape {list(sizes)}, which "
            f"has {prod(sizes)} elements"
        )
    return _boxes(sizes, start, stop) if start < stop else []


def _boxes(shape: tuple[int, ...], start: int, stop: int) -> list[Box]:
    if len(shape) == 1:
        return [Box((start,), (stop,))]
    row = prod(shape[1:])
    first, last = -(-start // row), stop // row
    if first > last:  # inside one row
        return _in_row(last, shape, start - last * row, stop - last * row)
    boxes = _in_row(first - 1, shape, start - (first - 1) * row, row) if start % row else []
    if first < last:
        boxes.append(Box((first, *(0 for _ in shape[1:])), (last, *shape[1:])))
    return boxes + (_in_row(last, shape, 0, stop - last * row) if stop % row else [])


def _in_row(index: int, shape: tuple[int, ...], start: int, stop: int) -> list[Box]:
    return [Box((index, *box.lo), (index + 1, *box.hi)) for box in _boxes(shape[1:], start, stop)]


def flat_pieces(
    tensor: str, shape: Sequence[int], start: int, stop: int, buffer: str, offset: int = 0
) -> list[Piece]:
    """The pieces of elements [start, stop) of a tensor that lie in `buffer` from `offset` on."""
    strides = contiguous_strides(tuple(shape))
    pieces = []
    for box in flat_boxes(shape, start, stop):
        first = sum(lo * stride for lo, stride in zip(box.lo, strides, strict=True))
        pieces.append(Piece(tensor, box, buffer, offset + first - start, strides))
    return pieces


def flat_placement(
    tensors: Mapping[str, tuple[int, ...]], rank: int, size: int, *, each: bool = False
) -> Placement:
    """What rank `rank` of `size` holds of flat shards; tensors: name -> shape, in their order.

    each False: the tensors, one after the other, are one flat buffer "flat", cut into `size` parts
    of equal length, the last ones shorter or empty (FSDP1's flat parameter, ZeRO's partitions).
    each True: every tensor is cut by itself into buffers of its own name (ZeRO-3).
    """
    if not 0 <= rank < size:
        raise ConfigError(f"flat shards: rank {rank} is not in 0..{size - 1}")
    if each:
        return tuple(
            piece
            for name, shape in tensors.items()
            for piece in flat_pieces(name, shape, *_share(prod(shape), rank, size), name)
        )
    start, stop = _share(sum(map(prod, tensors.values())), rank, size)
    pieces: list[Piece] = []
    before = 0
    for name, shape in tensors.items():
        count = prod(shape)
        lo, hi = max(start - before, 0), min(stop - before, count)
        if lo < hi:
            pieces += flat_pieces(name, shape, lo, hi, "flat", before + lo - start)
        before += count
    return tuple(pieces)


def _share(count: int, rank: int, size: int) -> tuple[int, int]:
    part = -(-count // size)
    return min(rank * part, count), min((rank + 1) * part, count)

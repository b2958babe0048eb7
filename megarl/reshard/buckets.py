"""Cuts a rank's transfers into wire buckets of bounded size: pure, and the same on both ends."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from megarl.layout import Box, Transfer


@dataclass(frozen=True, slots=True)
class Bucket:
    """Transfers that travel between two ranks in one message, in this order."""

    peer: int
    transfers: tuple[Transfer, ...]

    @property
    def numel(self) -> int:
        """Elements in the message."""
        return sum(transfer.box.numel for transfer in self.transfers)


def make_buckets(
    transfers: Iterable[Transfer], peer: int, bucket_elements: int
) -> tuple[Bucket, ...]:
    """Fill buckets in plan order; a transfer that is larger than a bucket is cut along its rows."""
    buckets: list[Bucket] = []
    filling: list[Transfer] = []
    room = bucket_elements
    for transfer in transfers:
        for part in split_transfer(transfer, bucket_elements):
            if filling and part.box.numel > room:
                buckets.append(Bucket(peer, tuple(filling)))
                filling, room = [], bucket_elements
            filling.append(part)
            room -= part.box.numel
    if filling:
        buckets.append(Bucket(peer, tuple(filling)))
    return tuple(buckets)


def split_transfer(transfer: Transfer, limit: int) -> Iterator[Transfer]:
    """Parts of at most `limit` elements, cut along the first dim that has more than one row."""
    box = transfer.box
    if box.numel <= limit:
        yield transfer
        return
    dim = next(i for i, size in enumerate(box.shape) if size > 1)
    row = box.numel // box.shape[dim]
    step = max(limit // row, 1)
    for start in range(0, box.shape[dim], step):
        stop = min(start + step, box.shape[dim])
        lo, hi = list(box.lo), list(box.hi)
        lo[dim], hi[dim] = box.lo[dim] + start, box.lo[dim] + stop
        part = replace(
            transfer,
            box=Box(tuple(lo), tuple(hi)),
            src_offset=transfer.src_offset + start * transfer.src_strides[dim],
            dst_offset=transfer.dst_offset + start * transfer.dst_strides[dim],
        )
        yield from split_transfer(part, limit)

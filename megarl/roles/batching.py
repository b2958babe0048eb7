"""Which rows make which mini-batch, and which data-parallel slice owns them: pure arithmetic.

Mini-batches are chosen from the step's groups alone, so they are the same for every layout; a
group never splits over slices; the balance is made inside each mini-batch.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from megarl.data.balance import assign_groups, equalize, micro_batches, split_to


@dataclass(frozen=True, slots=True)
class MicroBatchLimit:
    """How large one forward pass may be: rows, or padded tokens."""

    micro_batch_size: int | None
    max_tokens: int | None
    packing: bool = False
    """Samples share rows; max_tokens then counts tokens without padding."""


def deal_mini_batches(group: Sequence[int], batch_size: int, seed: int) -> list[list[int]]:
    """Rows of each optimizer step of one epoch, [number of mini-batches][rows].

    group: each row's group. Groups are shuffled by `seed` and fill mini-batches of `batch_size`
    rows whole; the last one takes what is left.
    """
    members: dict[int, list[int]] = {}
    for row, name in enumerate(group):
        members.setdefault(name, []).append(row)
    names = sorted(members)
    random.Random(seed).shuffle(names)
    batches: list[list[int]] = [[]]
    for name in names:
        if batches[-1] and len(batches[-1]) + len(members[name]) > batch_size:
            batches.append([])
        batches[-1] += members[name]
    return batches


def slice_of_rows(
    batches: Sequence[Sequence[int]], group: Sequence[int], lengths: Sequence[int], num_slices: int
) -> list[int]:
    """Data-parallel slice of every row: groups of a mini-batch dealt by their tokens."""
    slices = [0] * len(group)
    for rows in batches:
        names = sorted({group[row] for row in rows})
        index = {name: i for i, name in enumerate(names)}
        tokens = [0] * len(names)
        for row in rows:
            tokens[index[group[row]]] += lengths[row]
        owners = assign_groups(tokens, num_slices)
        for row in rows:
            slices[row] = owners[index[group[row]]]
    return slices


def cut_micro_batches(
    rows: Sequence[int],
    lengths: Sequence[int],
    slices: Sequence[int],
    num_slices: int,
    limit: MicroBatchLimit,
    multiple_of: int,
) -> list[list[list[int]]]:
    """Micro-batches of every slice for one mini-batch: [slice][micro-batch][rows].

    All slices get equally many, a multiple of `multiple_of`; surplus ones are empty.
    """
    per_slice = []
    for index in range(num_slices):
        own = [row for row in rows if slices[row] == index]
        cut = micro_batches(
            [lengths[row] for row in own],
            micro_batch_size=limit.micro_batch_size,
            max_tokens=limit.max_tokens,
            packing=limit.packing,
        )
        per_slice.append([[own[i] for i in batch] for batch in cut])
    count = max(equalize([len(batches) for batches in per_slice], multiple_of), multiple_of)
    return [split_to(batches, lengths, count) for batches in per_slice]

"""Finds a model's parameters among the tensors of a checkpoint, under any way of naming them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from typing import NamedTuple

from megarl.convert.stored import Entry
from megarl.convert.stored_rows import StoredTensor
from megarl.errors import DataError

NOT_WEIGHTS = ("optimizer.", "chained_", "rng_state", "rerun_state_machine_state", "opt_param")
"""Beginnings of keys of what a training run stores beside the model."""


class Rows(NamedTuple):
    """Rows [lo, hi) of an entry are the rows of the matrix at `at` of a stored tensor."""

    tensor: StoredTensor
    at: tuple[int, ...]
    lo: int
    hi: int


def find_entries(
    entries: tuple[Entry, ...], tensors: Mapping[str, StoredTensor], where: str
) -> dict[Entry, tuple[Rows, ...]]:
    """Each entry's rows; DataError for one that is missing or misshapen, or a tensor too many."""
    found, used = {}, set()
    for entry in entries:
        found[entry] = _find(entry, tensors, where)
        used |= {rows.tensor.key for rows in found[entry]} | set(entry.other_keys)
    surplus = sorted(key for key in set(tensors) - used if not key.startswith(NOT_WEIGHTS))
    if surplus:
        raise DataError(
            f"{where}: {len(surplus)} tensors are there that config.json does not ask for, such as "
            f"{surplus[0]} {list(tensors[surplus[0]].shape)}: give the config of this model"
        )
    return found


def _find(entry: Entry, tensors: Mapping[str, StoredTensor], where: str) -> tuple[Rows, ...]:
    for names in _ways(entry):
        if names[0][0] in tensors:
            break
    else:
        close = get_close_matches(entry.key, tensors, n=1)
        hint = f"; did it become {close[0]}?" if close else ""
        raise DataError(f"{where}: there is no tensor {entry.key} in the checkpoint{hint}")
    rows, start = [], 0
    for key, index, counts in names:
        if key not in tensors:
            raise DataError(f"{where}: there is no tensor {key}, though there is {names[0][0]}")
        part = entry.shape[0] // len(names)
        _check_shape(tensors[key], (*counts, part, *entry.shape[1:]), entry, where)
        rows.append(Rows(tensors[key], index, start, start + part))
        start += part
    return tuple(rows)


Name = tuple[str, tuple[int, ...], tuple[int, ...]]
"""Key, index in it, sizes of the axes of the index."""


def _ways(entry: Entry) -> Iterator[tuple[Name, ...]]:
    """What an entry may be stored as: the stack; a tensor a layer; a tensor a layer and expert.

    The last two are Megatron's non_homogeneous_layers and singleton_local_shards; the latter also
    stores gate and up apart.
    """
    index, counts = entry.index, entry.counts
    for key in (entry.key, *entry.other_keys):
        yield ((key, index, counts),)
        if not index:
            continue
        key = key.replace("layers.", f"layers.{index[0]}.")
        yield ((key, index[1:], counts[1:]),)
        if len(index) > 1:
            key = key.replace("experts.experts.", f"experts.experts.{index[1]}.")
            yield ((key, (), ()),)
        if entry.gated:
            yield ((f"{key}_w", (), ()), (f"{key}_v", (), ()))


def _check_shape(tensor: StoredTensor, expected: tuple[int, ...], entry: Entry, where: str) -> None:
    found, needed = tensor.shape, expected
    if len(entry.pieces) == 1 and not entry.index and len(found) == len(needed) == 2:
        # The vocabulary: its padding is a matter of the layout that saved it.
        rows = entry.pieces[0].hi
        found, needed = (min(found[0], rows), *found[1:]), (min(needed[0], rows), *needed[1:])
    if found != needed:
        raise DataError(
            f"{where}: {tensor.key} has shape {list(tensor.shape)}, config.json asks for "
            f"{list(expected)}"
        )

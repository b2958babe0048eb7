"""Reading rows of stored tensors, however they were cut over the files of a checkpoint."""

from __future__ import annotations

import os
from collections import defaultdict
from itertools import product
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from megarl.convert.hf_rows import read_exactly
from megarl.convert.stored_blob import stored_values
from megarl.errors import DataError
from megarl.layout import Box


class Stored(NamedTuple):
    """One stored box of a tensor, and where its bytes are."""

    box: Box
    file: Path
    offset: int
    length: int


class StoredTensor(NamedTuple):
    """A tensor of the checkpoint."""

    key: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    parts: tuple[Stored, ...]


class TensorRows:
    """Reads rows of the tensors of a checkpoint; files stay open, values do not stay in memory."""

    def __init__(self) -> None:
        self._handles: dict[Path, int] = {}
        self._offsets: dict[tuple[Path, int], int] = {}
        self._by_index: dict[tuple[str, int], dict[tuple[int, ...], list[Stored]]] = {}

    def read(
        self, tensor: StoredTensor, index: tuple[int, ...], lo: int, hi: int, into: Tensor
    ) -> None:
        """Fill `into` [hi - lo, columns] or [hi - lo] with rows of the matrix at `index`.

        `into` is contiguous and gets its own type. Raises DataError where the parts leave a gap.
        """
        left = into.numel()
        for part in self._parts(tensor, len(index)).get(index, ()):
            depth = len(index)
            start, end = max(lo, part.box.lo[depth]), min(hi, part.box.hi[depth])
            if start < end:
                left -= self._copy(tensor, part, index, (start, end), into[start - lo : end - lo])
        if left:
            raise DataError(
                f"{tensor.key} {list(index)}: {left} of {into.numel()} elements of rows {lo} to "
                f"{hi} are in no file of the checkpoint (or in two): it was not saved whole"
            )

    def _copy(
        self,
        tensor: StoredTensor,
        part: Stored,
        index: tuple[int, ...],
        rows: tuple[int, int],
        into: Tensor,
    ) -> int:
        depth = len(index)
        sizes = part.box.shape
        width = sizes[depth + 1] if len(sizes) > depth + 1 else 1
        at = 0
        for axis in range(depth):
            at = at * sizes[axis] + index[axis] - part.box.lo[axis]
        first = (at * sizes[depth] + rows[0] - part.box.lo[depth]) * width
        if len(sizes) > depth + 1:
            columns = slice(part.box.lo[depth + 1], part.box.hi[depth + 1])
            into = into.view(rows[1] - rows[0], tensor.shape[-1])[:, columns]
        straight = into.dtype == tensor.dtype and into.is_contiguous()
        values = into if straight else torch.empty(into.shape, dtype=tensor.dtype)
        handle, offset = self._values(tensor, part)
        read_exactly(handle, offset + first * tensor.dtype.itemsize, values, f"{part.file}")
        if not straight:
            into.copy_(values)
        return values.numel()

    def _values(self, tensor: StoredTensor, part: Stored) -> tuple[int, int]:
        """The file, opened, and the byte at which a part's values begin."""
        if part.file not in self._handles:
            self._handles[part.file] = os.open(part.file, os.O_RDONLY)
        handle = self._handles[part.file]
        if (part.file, part.offset) not in self._offsets:
            blob = stored_values(handle, part.file, part)
            if (blob.dtype, blob.shape) != (tensor.dtype, part.box.shape):
                raise DataError(
                    f"{part.file}: {tensor.key} {part.box} is {blob.dtype} {list(blob.shape)} in "
                    f"the file and {tensor.dtype} {list(part.box.shape)} in .metadata"
                )
            self._offsets[part.file, part.offset] = blob.offset
        return handle, self._offsets[part.file, part.offset]

    def _parts(self, tensor: StoredTensor, depth: int) -> dict[tuple[int, ...], list[Stored]]:
        if (tensor.key, depth) not in self._by_index:
            found: defaultdict[tuple[int, ...], list[Stored]] = defaultdict(list)
            for part in tensor.parts:
                for index in product(*map(range, part.box.lo[:depth], part.box.hi[:depth])):
                    found[index].append(part)
            self._by_index[tensor.key, depth] = found
        return self._by_index[tensor.key, depth]

    def close(self) -> None:
        """Close the files."""
        for handle in self._handles.values():
            os.close(handle)
        self._handles.clear()

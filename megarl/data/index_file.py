"""What an indexed data set holds, read without Megatron, and whether its files are whole."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megarl.errors import DataError

MAGIC = b"MMIDIDX\x00\x00"
VERSION = 1
DTYPES: dict[int, type[np.number[Any]]] = {
    1: np.uint8, 2: np.int8, 3: np.int16, 4: np.int32, 5: np.int64, 8: np.uint16,
}  # fmt: skip
"""Megatron's codes of the types that token ids may have."""
_HEADER = struct.Struct("<9sQBQQ")
_REMAKE = "copy it again, or make it again with tools/preprocess_data.py"


@dataclass(frozen=True)
class IndexFile:
    """`<prefix>.idx`, and how large `<prefix>.bin` is."""

    prefix: str
    dtype: type[np.number[Any]]
    """Type of a token id in the .bin."""
    num_documents: int
    """Megatron's "sequences": what is split, shuffled and strung together."""
    bin_bytes: int

    @cached_property
    def lengths(self) -> NDArray[np.int32]:
        """Tokens of each document, [number of documents]."""
        return np.memmap(
            f"{self.prefix}.idx", np.int32, "r", offset=_HEADER.size, shape=self.num_documents
        )

    @cached_property
    def num_tokens(self) -> int:
        """Tokens of all documents."""
        return int(self.lengths.sum(dtype=np.int64))

    def tokens_in(self, begin: int, end: int) -> int:
        """Tokens of documents [begin, end)."""
        return int(self.lengths[begin:end].sum(dtype=np.int64))

    def largest_token(self, most_bytes: int) -> int:
        """The largest id in at most so many bytes: all of them, or eight parts spread over them."""
        item = np.dtype(self.dtype).itemsize
        tokens = np.memmap(f"{self.prefix}.bin", self.dtype, "r", shape=self.num_tokens)
        if self.num_tokens * item <= most_bytes:
            return int(tokens.max())
        part = max(most_bytes // 8 // item, 1)
        starts = np.linspace(0, self.num_tokens - part, 8).astype(np.int64)
        return max(int(tokens[start : start + part].max()) for start in starts)


def read_index(prefix: str) -> IndexFile:
    """The index of a data set; DataError where a file is missing, empty, cut off or none of these.

    prefix: the path without .bin and .idx.
    """
    idx, bin_ = Path(f"{prefix}.idx"), Path(f"{prefix}.bin")
    for file in (idx, bin_):
        if not file.is_file():
            hint = ""
            if prefix.endswith((".bin", ".idx")):
                hint = f"; give the path without its ending: {prefix[:-4]}"
            elif file is idx and bin_.is_file():
                hint = "; what made the .bin did not end: make it again"
            raise DataError(f"{file} is missing, seen from {Path.cwd()}{hint}")
        if not file.stat().st_size:
            raise DataError(f"{file} is empty: {_REMAKE}")
    with idx.open("rb") as handle:
        head = handle.read(_HEADER.size)
    magic, version, code, count, num_ends = _HEADER.unpack(head.ljust(_HEADER.size, b"\0"))
    if magic != MAGIC or version != VERSION or code not in DTYPES:
        raise DataError(
            f"{idx} is no index of Megatron's indexed data sets, or of another version "
            f"(it begins with {head[:9]!r}): {_REMAKE}"
        )
    needed = _HEADER.size + count * (4 + 8) + num_ends * 8
    if idx.stat().st_size < needed:
        raise DataError(
            f"{idx} is truncated: {count} documents need {needed} bytes and it has "
            f"{idx.stat().st_size}: {_REMAKE}"
        )
    found = IndexFile(prefix, DTYPES[code], count, bin_.stat().st_size)
    tokens = found.num_tokens
    if not tokens:
        raise DataError(f"{idx} holds {count} documents without a token: there is nothing to learn")
    bin_needed = tokens * np.dtype(found.dtype).itemsize
    if found.bin_bytes != bin_needed:
        what = "is truncated" if found.bin_bytes < bin_needed else "is of another data set"
        raise DataError(
            f"{bin_} {what}: the {tokens} tokens of its index take {bin_needed} bytes and it has "
            f"{found.bin_bytes}: {_REMAKE}"
        )
    return found

"""Rows of Hugging Face tensors as plain bytes of their files: read into memory one gives, written.

Neither side maps a file: what a process holds is what it was given to fill.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megarl.convert.aside import PlainFile
from megarl.errors import DataError
from megarl.weights.source import SafetensorsFolder

NAMES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
"""Types that are converted, by their names in safetensors files."""


def read_header(file: Path) -> tuple[dict[str, Any], int]:
    """A safetensors file's table (tensor -> dtype, shape, data_offsets), and where data starts."""
    with file.open("rb") as opened:
        size = int.from_bytes(opened.read(8), "little")
        table = json.loads(opened.read(size))
    table.pop("__metadata__", None)
    return table, 8 + size


class HfRows:
    """Reads rows of the tensors of a folder, which has been checked."""

    def __init__(self, folder: SafetensorsFolder) -> None:
        self._folder = folder
        self._tables: dict[Path, tuple[dict[str, Any], int, int]] = {}

    def dtype(self, tensor: str) -> torch.dtype:
        """The tensor's type; raises DataError for one that is not converted."""
        file = self._folder.file_of(tensor)
        name = self._table(file)[0][tensor]["dtype"]
        if name not in NAMES:
            raise DataError(
                f"{file}: {tensor} has the type {name}; converted are {', '.join(NAMES)}: give the "
                "model in one of these (quantized weights must be dequantized first)"
            )
        return NAMES[name]

    def read(self, tensor: str, lo: int, hi: int, into: Tensor) -> None:
        """Fill a contiguous tensor with rows [lo, hi), cast to its type."""
        own = self.dtype(tensor)
        file = self._folder.file_of(tensor)
        table, start, handle = self._table(file)
        stride = prod(table[tensor]["shape"][1:]) * own.itemsize
        at = start + table[tensor]["data_offsets"][0] + lo * stride
        raw = into if into.dtype == own else torch.empty(into.shape, dtype=own)
        read_exactly(handle, at, raw, f"{file}: {tensor}, rows {lo} to {hi}")
        if raw is not into:
            into.copy_(raw)

    def close(self) -> None:
        """Close the files."""
        for _, _, handle in self._tables.values():
            os.close(handle)
        self._tables.clear()

    def _table(self, file: Path) -> tuple[dict[str, Any], int, int]:
        if file not in self._tables:
            self._tables[file] = (*read_header(file), os.open(file, os.O_RDONLY))
        return self._tables[file]


def bytes_of(values: Tensor) -> memoryview:
    """The memory of a contiguous tensor, to be read or written."""
    array: Any = values.view(-1).view(torch.uint8).numpy()
    return memoryview(array)


def read_exactly(handle: int, offset: int, into: Tensor, what: str) -> None:
    """Fill a contiguous tensor with the bytes at `offset`; DataError where the file ends before."""
    view = bytes_of(into)
    done = 0
    while done < len(view):
        count = os.preadv(handle, [view[done:]], offset + done)
        if not count:
            raise DataError(
                f"{what}: the file ends {len(view) - done} bytes early; it is truncated or was "
                "changed meanwhile: copy it again"
            )
        done += count


class HfFile:
    """A safetensors file that is written from front to back, a block of rows at a time."""

    def __init__(
        self, file: Path, shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype
    ) -> None:
        name = next(name for name, known in NAMES.items() if known == dtype)
        table: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        end = 0
        for tensor, shape in shapes.items():
            start, end = end, end + prod(shape) * dtype.itemsize
            table[tensor] = {"dtype": name, "shape": list(shape), "data_offsets": [start, end]}
        header = json.dumps(table, separators=(",", ":")).encode()
        header += b" " * (-len(header) % 8)
        self._opened = PlainFile(file)
        self._opened.write(len(header).to_bytes(8, "little") + header)

    def write(self, block: Tensor) -> None:
        """The next rows, contiguous, of the tensors in the order that the file was opened with."""
        self._opened.write(bytes_of(block))

    def close(self) -> None:
        """End the file."""
        self._opened.close()

"""A file of a torch_dist checkpoint: tensors as torch.save writes them, one after another."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor


class Where(NamedTuple):
    """The bytes of one chunk."""

    file: str
    offset: int
    length: int


class ChunkFile:
    """One file of chunks, each a tensor as torch.save writes it."""

    def __init__(self, folder: Path, number: int) -> None:
        self.path = folder / f"__{number}_0.distcp"
        self._opened = self.path.open("wb")

    def write(self, values: Tensor) -> Where:
        """Append a tensor, which owns its storage."""
        offset = self._opened.tell()
        # Through Python's file: torch.save hands over the tensor's memory without a copy.
        torch.save(values, self._opened)
        self._opened.flush()
        return Where(self.path.name, offset, self._opened.tell() - offset)

    def close(self) -> None:
        """End the file."""
        self._opened.close()

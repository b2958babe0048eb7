"""A file of a torch_dist checkpoint: tensors as torch.save writes them, one after another."""

from __future__ import annotations

from pathlib import Path
from typing import IO, NamedTuple, cast

import torch
from torch import Tensor

from megarl.convert.aside import PlainFile


class Where(NamedTuple):
    """The bytes of one chunk."""

    file: str
    offset: int
    length: int


class ChunkFile:
    """One file of chunks, each a tensor as torch.save writes it."""

    def __init__(self, folder: Path, number: int) -> None:
        self.path = folder / f"__{number}_0.distcp"
        self._opened = PlainFile(self.path)

    def write(self, values: Tensor) -> Where:
        """Append a tensor, which owns its storage."""
        offset = self._opened.size
        try:
            torch.save(values, cast(IO[bytes], self._opened))
        except RuntimeError:
            # torch says that its writer failed, not why.
            raise self._opened.error or RuntimeError(f"{self.path}: torch.save failed") from None
        return Where(self.path.name, offset, self._opened.size - offset)

    def close(self) -> None:
        """End the file."""
        self._opened.close()

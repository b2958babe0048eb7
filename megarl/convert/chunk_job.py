"""What one worker does on the way to Megatron: chunks from Hugging Face files into a file."""

from __future__ import annotations

import os
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from megarl.convert.aside import naming
from megarl.convert.chunk_file import ChunkFile, Where
from megarl.convert.digests import Seen, digest_pieces
from megarl.convert.hf_rows import HfRows, read_exactly
from megarl.convert.stored import Chunk, entries
from megarl.convert.stored_blob import stored_values
from megarl.convert.workers import Tell
from megarl.errors import VerificationError
from megarl.layout import ModelShape
from megarl.weights.source import SafetensorsFolder

KEPT_BUFFERS_NUMEL = 64 << 20


@dataclass(frozen=True, slots=True)
class ChunkJob:
    """What one worker writes: chunks [first, last) of the model's, in order."""

    source: Path
    target: Path
    shape: ModelShape
    dtype: torch.dtype
    number: int
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Written:
    """What a worker answers."""

    where: list[Where]
    seen: dict[str, list[Seen]]


def write_chunks(job: ChunkJob, tell: Tell) -> Written:
    """The job of one worker: its file, and what it read, piece by piece."""
    chunks = [chunk for entry in entries(job.shape) for chunk in entry.chunks()]
    rows = HfRows(SafetensorsFolder(job.source))
    buffers = _Buffers(job.dtype)
    written = Written([], defaultdict(list))
    file = ChunkFile(job.target, job.number)
    try:
        handle = os.open(file.path, os.O_RDONLY)
        try:
            for chunk in chunks[job.first : job.last]:
                values = buffers.of(chunk)
                pieces = chunk.pieces()
                flat = values.view(chunk.hi - chunk.lo, -1)
                for piece in pieces:
                    into = flat[piece.row : piece.row + piece.hi - piece.lo]
                    rows.read(piece.tensor, piece.lo, piece.hi, into)
                flat[sum(piece.hi - piece.lo for piece in pieces) :] = 0
                came = digest_pieces(values, pieces, chunk.entry.columns)
                with naming(file.path, chunk.entry.key):
                    where = file.write(values)
                _check(handle, file.path, chunk, where, values, came)
                written.where.append(where)
                for piece, seen in zip(pieces, came, strict=True):
                    written.seen[piece.tensor].append(seen)
                tell(values.nbytes)
        finally:
            os.close(handle)
            file.close()
    finally:
        rows.close()
    return written


def _check(
    handle: int, path: Path, chunk: Chunk, where: Where, values: Tensor, came: list[Seen]
) -> None:
    """Read a chunk back, over the values that were written, and compare digests."""
    blob = stored_values(handle, path, where)
    read_exactly(handle, blob.offset, values, f"{path}: {chunk.entry.key}")
    if digest_pieces(values, chunk.pieces(), chunk.entry.columns) != came:
        raise VerificationError(
            f"{path}: {chunk.entry.key} {list(chunk.offsets)}: the file does not hold what was "
            "written to it; the disk or the memory is faulty"
        )


class _Buffers:
    """Memory for chunks, kept while few sizes alternate: a layer has the same as the last one."""

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._kept: dict[tuple[int, ...], Tensor] = {}

    def of(self, chunk: Chunk) -> Tensor:
        """A tensor of the chunk's shape, with a storage of its own."""
        if chunk.sizes not in self._kept:
            if sum(kept.numel() for kept in self._kept.values()) + chunk.numel > KEPT_BUFFERS_NUMEL:
                self._kept.clear()
            self._kept[chunk.sizes] = torch.empty(chunk.sizes, dtype=self._dtype)
        return self._kept[chunk.sizes]

"""What one worker does on the way to Hugging Face: blocks of stored rows into whole files."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from megarl.convert.aside import naming
from megarl.convert.digests import digest_pieces, read_digests, tensor_digest
from megarl.convert.find import Rows
from megarl.convert.hf_rows import HfFile, read_exactly, read_header
from megarl.convert.stored import CHUNK_NUMEL, Entry, Piece, entries
from megarl.convert.stored_rows import TensorRows
from megarl.convert.workers import Tell
from megarl.errors import VerificationError
from megarl.layout import ModelShape, hf_tensors


@dataclass(frozen=True, slots=True)
class BlockJob:
    """The files that one worker writes."""

    source: Path
    target: Path
    shape: ModelShape
    dtype: torch.dtype
    files: tuple[tuple[str, tuple[str, ...]], ...]
    """Name and tensors of each."""
    found: Mapping[Entry, tuple[Rows, ...]]
    """Where the checkpoint has each parameter."""


class Part(NamedTuple):
    """A piece of a Hugging Face tensor, and the parameter that holds it at `piece.row`."""

    entry: Entry
    piece: Piece


def write_blocks(job: BlockJob, tell: Tell) -> None:
    """The job of one worker: its files, each read back and compared by digest."""
    expected = read_digests(job.source, job.dtype)
    shapes, parts = hf_tensors(job.shape), _parts(job.shape)
    rows = TensorRows()
    try:
        for name, tensors in job.files:
            path = job.target / name
            file = HfFile(path, {tensor: shapes[tensor] for tensor in tensors}, job.dtype)
            went = {}
            try:
                for tensor in tensors:
                    seen = []
                    for block in _blocks(parts[tensor], shapes[tensor]):
                        values = torch.empty(
                            (block[-1].piece.hi - block[0].piece.lo, *shapes[tensor][1:]),
                            dtype=job.dtype,
                        )
                        placed = _fill(values, block, job.found, rows)
                        seen += digest_pieces(values, placed, values[0].numel())
                        with naming(path, tensor):
                            file.write(values)
                        tell(values.nbytes)
                    went[tensor] = tensor_digest(seen)
                    _check(went[tensor], expected, tensor, job.source)
            finally:
                file.close()
            _check_file(path, went, parts, shapes, job.dtype)
    finally:
        rows.close()


def _parts(shape: ModelShape) -> dict[str, list[Part]]:
    """The pieces of every tensor, in the order of its rows, cut as a conversion cuts them."""
    found: defaultdict[str, list[Part]] = defaultdict(list)
    for entry in entries(shape):
        for chunk in entry.chunks():
            for piece in chunk.pieces():
                at = Piece(piece.tensor, piece.lo, piece.hi, chunk.lo + piece.row)
                found[piece.tensor].append(Part(entry, at))
    return {
        tensor: sorted(parts, key=lambda part: part.piece.lo) for tensor, parts in found.items()
    }


def _blocks(parts: list[Part], shape: tuple[int, ...]) -> Iterator[list[Part]]:
    """Consecutive pieces of at most about a chunk's elements."""
    columns = torch.Size(shape[1:]).numel()
    block: list[Part] = []
    for part in parts:
        if block and (part.piece.hi - block[0].piece.lo) * columns > CHUNK_NUMEL:
            yield block
            block = []
        block.append(part)
    yield block


def _fill(
    values: Tensor, block: list[Part], found: Mapping[Entry, tuple[Rows, ...]], rows: TensorRows
) -> list[Piece]:
    """Read a block's pieces into their places; returns them with their rows in the block."""
    placed = []
    for entry, piece in block:
        start = piece.lo - block[0].piece.lo
        placed.append(Piece(piece.tensor, piece.lo, piece.hi, start))
        for stored in found[entry]:
            lo = max(piece.row, stored.lo)
            hi = min(piece.row + piece.hi - piece.lo, stored.hi)
            if lo < hi:
                into = values[start + lo - piece.row : start + hi - piece.row]
                rows.read(stored.tensor, stored.at, lo - stored.lo, hi - stored.lo, into)
    return placed


def _check(digest: str, expected: dict[str, str], tensor: str, source: Path) -> None:
    if expected.get(tensor, digest) != digest:
        raise VerificationError(
            f"{source}: {tensor} is not what it was when the checkpoint was made (digest {digest}, "
            f"then {expected[tensor]}): a file was damaged or changed since; copy it again"
        )


def _check_file(
    path: Path,
    went: dict[str, str],
    parts: dict[str, list[Part]],
    shapes: dict[str, tuple[int, ...]],
    dtype: torch.dtype,
) -> None:
    """Read a file back, and compare digests with what was written."""
    table, start = read_header(path)
    handle = os.open(path, os.O_RDONLY)
    try:
        for tensor, digest in went.items():
            at, seen = start + table[tensor]["data_offsets"][0], []
            for block in _blocks(parts[tensor], shapes[tensor]):
                first = block[0].piece.lo
                values = torch.empty((block[-1].piece.hi - first, *shapes[tensor][1:]), dtype=dtype)
                read_exactly(handle, at, values, f"{path}: {tensor}")
                at += values.nbytes
                placed = [Piece(p.tensor, p.lo, p.hi, p.lo - first) for _, p in block]
                seen += digest_pieces(values, placed, values[0].numel())
            if tensor_digest(seen) != digest:
                raise VerificationError(
                    f"{path}: {tensor}: the file does not hold what was written to it; the disk "
                    "or the memory is faulty"
                )
    finally:
        os.close(handle)

"""A digest of every Hugging Face tensor, made of the digests of its pieces."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from megarl import native
from megarl.convert.stored import Piece
from megarl.errors import DataError
from megarl.native import DType, RegionTable

FILE = "digests.json"
RAW: dict[int, DType] = {2: "raw2", 4: "raw4"}


class Seen(NamedTuple):
    """The digest of one piece of a tensor."""

    lo: int
    hi: int
    digest: int


def digest_pieces(buffer: Tensor, pieces: Sequence[Piece], columns: int) -> list[Seen]:
    """Digests of pieces that lie at their `row` in a contiguous buffer of rows of `columns`."""
    regions = [
        (buffer.data_ptr(), buffer.numel(), piece.row * columns, (1,), (size,), 0)
        for piece in pieces
        for size in ((piece.hi - piece.lo) * columns,)
    ]
    values = native.digest(RegionTable(regions), dtype=RAW[buffer.itemsize])
    return [
        Seen(piece.lo, piece.hi, int(value)) for piece, value in zip(pieces, values, strict=True)
    ]


def tensor_digest(seen: Sequence[Seen]) -> str:
    """The digest of a tensor whose pieces were seen, in any order."""
    text = ",".join(f"{lo}:{hi}:{value}" for lo, hi, value in sorted(seen))
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def write_digests(folder: Path, dtype: torch.dtype, found: Mapping[str, str]) -> None:
    """Keep the digests beside the tensors that they are of."""
    content = {"dtype": str(dtype).removeprefix("torch."), "tensors": dict(found)}
    (folder / FILE).write_text(json.dumps(content, indent=1) + "\n")


def has_digests(folder: Path) -> bool:
    """Whether a conversion kept digests beside the checkpoint's tensors."""
    return (folder / FILE).exists()


def read_digests(folder: Path, dtype: torch.dtype) -> dict[str, str]:
    """What was kept, where it is of this type; {} where there is nothing to compare with."""
    file = folder / FILE
    if not file.exists():
        return {}
    try:
        content = json.loads(file.read_text())
        found = {str(name): str(value) for name, value in content["tensors"].items()}
        same = content["dtype"] == str(dtype).removeprefix("torch.")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{file}: cannot be read ({error!r}); convert again") from None
    return found if same else {}

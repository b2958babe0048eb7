"""Where the values of a stored tensor lie in its file: torch.save's archive, without loading it.

The archive is a zip of uncompressed records; `data.pkl` describes the tensor and `data/0` is its
storage. Nothing in it is run: the few names that a plain tensor needs are known here.
"""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from collections import OrderedDict
from math import prod
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch

from megarl.errors import DataError
from megarl.layout.box import contiguous_strides

STORAGES = {
    "FloatStorage": torch.float32,
    "BFloat16Storage": torch.bfloat16,
    "HalfStorage": torch.float16,
}
LOCAL_HEADER_BYTES = 30


class Place(Protocol):
    """Bytes of a file."""

    @property
    def offset(self) -> int:
        """First byte."""

    @property
    def length(self) -> int:
        """Number of bytes."""


class Blob(NamedTuple):
    """A tensor in a file, row-major without gaps."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int
    """Byte of the file at which its values begin."""


def stored_values(handle: int, file: Path, place: Place) -> Blob:
    """Find a tensor's values; raises DataError for what is no plain tensor, or is damaged."""
    view = io.BufferedReader(_View(handle, place.offset, place.length), 1 << 16)
    try:
        with zipfile.ZipFile(view) as archive:
            records = {name.partition("/")[2]: name for name in archive.namelist()}
            tensor = _Description(io.BytesIO(archive.read(records["data.pkl"]))).load()
            start = archive.getinfo(records["data/0"]).header_offset
        size = len(records["data/0"].encode())
        view.seek(start + LOCAL_HEADER_BYTES - 2)
        extra = int.from_bytes(view.read(2), "little")
    except (zipfile.BadZipFile, pickle.UnpicklingError, KeyError, EOFError, OSError) as error:
        raise DataError(
            f"{file}: no tensor can be read at byte {place.offset} ({error!r}); it is damaged or "
            "truncated: copy the checkpoint again"
        ) from None
    if not isinstance(tensor, _Tensor) or tensor.stride != contiguous_strides(tensor.shape):
        raise DataError(f"{file}: what lies at byte {place.offset} is not a contiguous tensor")
    values = place.offset + start + LOCAL_HEADER_BYTES + size + extra
    values += tensor.start * tensor.dtype.itemsize
    end = values + prod(tensor.shape) * tensor.dtype.itemsize
    if end > place.offset + place.length:
        raise DataError(f"{file}: the tensor at byte {place.offset} is cut off; copy it again")
    return Blob(tensor.dtype, tensor.shape, values)


class _Tensor(NamedTuple):
    dtype: torch.dtype
    start: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


def _tensor(storage: Any, start: int, shape: Any, stride: Any, *_: Any) -> _Tensor:
    shape = tuple(shape)
    # A dim of one element is stepped over by nothing.
    plain = contiguous_strides(shape)
    steps = zip(shape, stride, plain, strict=True)
    stride = tuple(own if size == 1 else step for size, step, own in steps)
    return _Tensor(storage, start, shape, stride)


class _Description(pickle.Unpickler):
    """Reads data.pkl of a plain tensor."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _tensor
        if module == "torch" and name in STORAGES:
            return STORAGES[name]
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        raise pickle.UnpicklingError(f"it holds {module}.{name}, which no plain tensor has")

    def persistent_load(self, pid: Any) -> Any:
        return pid[1]


class _View(io.RawIOBase):
    """Some bytes of a file, as a file."""

    def __init__(self, handle: int, offset: int, length: int) -> None:
        super().__init__()
        self._handle, self._offset, self._length, self._at = handle, offset, length, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._length}[whence]
        self._at = base + offset
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        size = max(min(len(buffer), self._length - self._at), 0)
        count = os.preadv(self._handle, [memoryview(buffer)[:size]], self._offset + self._at)
        self._at += count
        return count

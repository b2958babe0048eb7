"""Where weights come from: a safetensors folder, or a generator keyed by tensor name.

Both answer one question: the values of one box of one Hugging Face tensor.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from megarl.errors import DataError
from megarl.layout import Box

COMPUTED = "rotary_emb.inv_freq"
"""End of the names of tensors that old files hold and every model computes."""
EQUAL_BLOCK_ROWS = 4096
FRESH_BLOCK_ROWS = 256
"""Rows that share one generator: a rank makes only the blocks its boxes touch."""


class WeightSource(Protocol):
    """Values of Hugging Face tensors, box by box."""

    def read(self, tensor: str, box: Box) -> Tensor:
        """The values of `box` of `tensor`, in the source's own dtype."""
        ...


class SafetensorsFolder:
    """A Hugging Face folder with one or many safetensors files."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._file_of = _index(self.folder)
        self._open: dict[str, safe_open] = {}

    @property
    def names(self) -> set[str]:
        """Names of the tensors."""
        return set(self._file_of)

    def file_of(self, tensor: str) -> Path:
        """The file that holds a tensor; raises DataError where there is none."""
        if tensor not in self._file_of:
            raise DataError(f"{self.folder}: there is no tensor {tensor}")
        return self.folder / self._file_of[tensor]

    def check(self, expected: Mapping[str, tuple[int, ...]], ignored: Collection[str] = ()) -> None:
        """Raise DataError unless every expected tensor is there with its shape, and no other.

        ignored: names that may be there all the same, and are not read.
        """
        missing = sorted(set(expected) - self.names)
        if missing:
            raise DataError(
                f"{self.folder}: {len(missing)} tensors are missing, such as {missing[0]}; "
                "config.json and the weights do not belong together"
            )
        for name, shape in expected.items():
            found = tuple(self._slice(name).get_shape())
            if found != shape:
                raise DataError(
                    f"{self.folder / self._file_of[name]}: {name} has shape {list(found)}, "
                    f"config.json asks for {list(shape)}"
                )
        surplus = sorted(
            name
            for name in self.names - set(expected) - set(ignored)
            if not name.endswith(COMPUTED)
        )
        if surplus:
            raise DataError(
                f"{self.folder}: {len(surplus)} tensors are there that config.json does not ask "
                f"for, such as {surplus[0]}: its num_hidden_layers, tie_word_embeddings or "
                "architectures are another model's"
            )

    def equal(self, tensor: str, other: str) -> bool:
        """Whether two tensors hold the same values; read a block of rows at a time."""
        shapes = [tuple(self._slice(name).get_shape()) for name in (tensor, other)]
        if shapes[0] != shapes[1]:
            return False
        rows, rest = shapes[0][0], shapes[0][1:]
        blocks = (
            Box((lo, *(0 for _ in rest)), (min(lo + EQUAL_BLOCK_ROWS, rows), *rest))
            for lo in range(0, rows, EQUAL_BLOCK_ROWS)
        )
        return all(torch.equal(self.read(tensor, box), self.read(other, box)) for box in blocks)

    def read(self, tensor: str, box: Box) -> Tensor:
        """The values of `box` of `tensor`, read from its file and nothing else."""
        piece = self._slice(tensor)
        return piece[tuple(slice(lo, hi) for lo, hi in zip(box.lo, box.hi, strict=True))]

    def _slice(self, tensor: str) -> Any:
        name = self.file_of(tensor).name
        if name not in self._open:
            try:
                self._open[name] = safe_open(str(self.folder / name), framework="pt")
            except (SafetensorError, OSError) as error:
                raise DataError(
                    f"{self.folder / name}: missing or truncated ({error}); copy it again"
                ) from None
        try:
            return self._open[name].get_slice(tensor)
        except SafetensorError as error:
            raise DataError(
                f"{self.folder / name}: {tensor} is not in it ({error}), though the index says so; "
                "copy the folder again"
            ) from None


def _index(folder: Path) -> dict[str, str]:
    """Tensor name -> file name; raises DataError where there are no readable weights."""
    index = folder / "model.safetensors.index.json"
    if index.exists():
        try:
            content = json.loads(index.read_text())
            weight_map = {str(tensor): str(name) for tensor, name in content["weight_map"].items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{index}: cannot be read ({error!r}); copy it again") from None
        for name in sorted(set(weight_map.values())):
            if not (folder / name).exists():
                raise DataError(f"{folder}: {name} is missing, though {index.name} lists it")
        return weight_map
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise DataError(f"{folder}: there are no safetensors files")
    found: dict[str, str] = {}
    for file in files:
        try:
            with safe_open(str(file), framework="pt") as opened:
                found.update(dict.fromkeys(opened.keys(), file.name))
        except (SafetensorError, OSError) as error:
            raise DataError(f"{file}: truncated or not safetensors ({error})") from None
    return found


class FreshWeights:
    """New weights as transformers makes them: normal(0, std), norm weights 1, biases 0.

    std is config.json's initializer_range. Scalar heads are 0. A value depends on seed, name, row
    and column alone, so that every layout starts from the same model.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], seed: int, std: float = 0.02) -> None:
        self._shapes = shapes
        self._seed = seed
        self._std = std

    def read(self, tensor: str, box: Box) -> Tensor:
        """fp32 values of `box` of `tensor`."""
        shape = self._shapes[tensor]
        if tensor.endswith("bias") or tensor.startswith("score."):
            return torch.zeros(box.shape)
        if len(shape) == 1:
            return torch.ones(box.shape)
        first, last = box.lo[0] // FRESH_BLOCK_ROWS, -(-box.hi[0] // FRESH_BLOCK_ROWS)
        blocks = [self._block(tensor, index, shape) for index in range(first, last)]
        rows = torch.cat(blocks) * self._std
        offset = first * FRESH_BLOCK_ROWS
        rest = tuple(slice(lo, hi) for lo, hi in zip(box.lo[1:], box.hi[1:], strict=True))
        return rows[(slice(box.lo[0] - offset, box.hi[0] - offset), *rest)]

    def _block(self, tensor: str, index: int, shape: tuple[int, ...]) -> Tensor:
        key = hashlib.blake2b(f"{self._seed}/{tensor}/{index}".encode(), digest_size=8).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(key, "big") >> 1)
        return torch.randn(FRESH_BLOCK_ROWS, *shape[1:], generator=generator)

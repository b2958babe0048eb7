"""Writing a Hugging Face folder: shard by shard, aside, renamed when it is whole."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from safetensors.torch import save_file
from torch import Tensor

from megarl.layout.rules import ModelShape, family_of
from megarl.runtime import unfinished

COMPANIONS = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "added_tokens.json",
)
"""What travels along with the weights, where it is there."""


def shard_tensors(
    shapes: Mapping[str, tuple[int, ...]], itemsize: int, max_shard_bytes: int
) -> Iterator[dict[str, tuple[int, ...]]]:
    """Tensors of each file, in order, at most `max_shard_bytes` unless one alone is larger."""
    shard: dict[str, tuple[int, ...]] = {}
    size = 0
    for name, shape in shapes.items():
        nbytes = itemsize * int(torch.Size(shape).numel())
        if shard and size + nbytes > max_shard_bytes:
            yield shard
            shard, size = {}, 0
        shard[name] = shape
        size += nbytes
    if shard:
        yield shard


def shard_name(index: int, num_shards: int) -> str:
    """Name of file `index` (from 0) of a folder's weights."""
    if num_shards == 1:
        return "model.safetensors"
    return f"model-{index + 1:05d}-of-{num_shards:05d}.safetensors"


def write_index(folder: Path, file_of: Mapping[str, str], total_bytes: int) -> None:
    """Say which file holds which tensor, for a folder with several."""
    index = {"metadata": {"total_size": total_bytes}, "weight_map": dict(file_of)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))


def change_config(folder: Path, dtype: torch.dtype, **changes: Any) -> None:
    """Set the weights' type, and other keys, in a folder's config.json."""
    config = json.loads((folder / "config.json").read_text())
    config.pop("torch_dtype", None)
    config |= {"dtype": str(dtype).removeprefix("torch.")} | changes
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def head_keys(shape: ModelShape, config: Mapping[str, Any]) -> dict[str, Any]:
    """What config.json must say of a scalar head that it does not say yet."""
    names = [str(name) for name in config.get("architectures") or ()]
    if shape.scalar_head is None or any(n.endswith("ForSequenceClassification") for n in names):
        return {}
    known = family_of(shape).architectures
    head = next(name for name in known if name.endswith("ForSequenceClassification"))
    return {"architectures": [head], "num_labels": 1}


class FolderWriter:
    """Writes shards into `<folder>.partial` and renames it when `finish` is called.

    Use as `with FolderWriter(...) as writer`: an exception inside, or the end of the process
    because a peer failed, removes what was written.
    """

    def __init__(self, folder: str | Path, template: str | Path, num_shards: int) -> None:
        self._folder = Path(folder)
        self._partial = self._folder.with_name(self._folder.name + ".partial")
        shutil.rmtree(self._partial, ignore_errors=True)
        unfinished.begin(self._partial)
        self._partial.mkdir(parents=True)
        for name in COMPANIONS:
            if (Path(template) / name).exists():
                shutil.copy2(Path(template) / name, self._partial / name)
        self._num_shards = num_shards
        self._map: dict[str, str] = {}
        self._bytes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None:
            shutil.rmtree(self._partial, ignore_errors=True)
        unfinished.end(self._partial)

    def write(self, tensors: Mapping[str, Tensor]) -> None:
        """Write the next shard."""
        name = shard_name(len(set(self._map.values())), self._num_shards)
        save_file(dict(tensors), str(self._partial / name), metadata={"format": "pt"})
        # safetensors makes it readable for its owner alone: as config.json is, rather.
        (self._partial / name).chmod((self._partial / "config.json").stat().st_mode)
        self._map.update(dict.fromkeys(tensors, name))
        self._bytes += sum(tensor.nbytes for tensor in tensors.values())

    def finish(self, dtype: torch.dtype, **changes: Any) -> None:
        """Write index and config, with `changes` in it; then give the folder its name."""
        if self._num_shards > 1:
            write_index(self._partial, self._map, self._bytes)
        change_config(self._partial, dtype, **changes)
        shutil.rmtree(self._folder, ignore_errors=True)
        os.replace(self._partial, self._folder)

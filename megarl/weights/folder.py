"""Writing a Hugging Face folder: shard by shard, aside, renamed when it is whole."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from megarl.layout.rules import ModelShape, family_of
from megarl.runtime.aside import sync_tree, take_place, work_folder

COMPANIONS = ("*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken", "*.py", "LICENSE*", "NOTICE*")
"""Names of what belongs to a model beside its weights; an index of weights (*.index.json) does
not."""


def copy_companions(source: Path, target: Path) -> None:
    """Copy what lies beside the weights: config, tokenizer, generation config, chat template."""
    target.mkdir(exist_ok=True)
    found = {file for pattern in COMPANIONS for file in source.glob(pattern) if file.is_file()}
    for file in sorted(found - set(source.glob("*.index.json"))):
        shutil.copyfile(file, target / file.name)
    templates = source / "additional_chat_templates"
    if templates.is_dir():
        shutil.copytree(templates, target / templates.name)


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


@contextmanager
def new_folder(folder: Path, template: Path, num_shards: int) -> Iterator[FolderWriter]:
    """A writer into `<folder>.partial`, which takes `folder`'s place when the block ends.

    Beside the weights lies what lies beside `template`'s. An exception inside, or the end of the
    process because a peer failed, removes what was written and leaves an older folder alone; a full
    disk becomes a RunError.
    """
    with work_folder(folder.with_name(folder.name + ".partial")) as partial:
        copy_companions(template, partial)
        yield FolderWriter(partial, num_shards)
        sync_tree(partial)
        take_place(partial, folder)


class FolderWriter:
    """Writes shards into a folder, one after the other, and at last what says where they are."""

    def __init__(self, folder: Path, num_shards: int) -> None:
        self._folder, self._num_shards = folder, num_shards
        self._map: dict[str, str] = {}
        self._bytes = 0

    def write(self, tensors: Mapping[str, Tensor]) -> None:
        """Write the next shard."""
        name = shard_name(len(set(self._map.values())), self._num_shards)
        save_file(dict(tensors), str(self._folder / name), metadata={"format": "pt"})
        # safetensors makes it readable for its owner alone: as config.json is, rather.
        (self._folder / name).chmod((self._folder / "config.json").stat().st_mode)
        self._map.update(dict.fromkeys(tensors, name))
        self._bytes += sum(tensor.nbytes for tensor in tensors.values())

    def finish(self, dtype: torch.dtype, **changes: Any) -> None:
        """Write index and config, with `changes` in it."""
        if self._num_shards > 1:
            write_index(self._folder, self._map, self._bytes)
        change_config(self._folder, dtype, **changes)

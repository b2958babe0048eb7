"""The tables of a torch_dist checkpoint: its tensors, and which bytes hold which box."""

from __future__ import annotations

import io
import json
import pickle
from collections.abc import Iterable, Mapping
from enum import Enum
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint import metadata as dcp
from torch.distributed.checkpoint.filesystem import _StorageInfo

from megarl.convert.chunk_file import Where
from megarl.convert.stored import Chunk
from megarl.convert.stored_rows import Stored, StoredTensor
from megarl.errors import DataError
from megarl.layout import Box

BACKEND = {
    "sharded_backend": "torch_dist",
    "sharded_backend_version": 1,
    "common_backend": "torch",
    "common_backend_version": 1,
}
PLAIN = {
    ("torch", "Size"),
    ("torch", "device"),
    ("torch.serialization", "_get_layout"),
    ("collections", "OrderedDict"),
    ("pathlib", "PosixPath"),
    ("pathlib", "PurePosixPath"),
}
"""What a table of contents holds beside torch.distributed.checkpoint's own classes and dtypes."""


def write_tables(
    folder: Path,
    chunks: Iterable[tuple[Chunk, Where]],
    dtype: torch.dtype,
    objects: Iterable[str],
    common: dict[str, Any],
) -> None:
    """Everything but the chunks: objects, `.metadata`, common.pt, and metadata.json at last."""
    tensors: dict[str, dcp.TensorStorageMetadata] = {}
    storage: dict[dcp.MetadataIndex, _StorageInfo] = {}
    for chunk, where in chunks:
        entry = chunk.entry
        for key in (entry.key, *entry.other_keys):
            size = torch.Size(entry.full_shape)
            properties = dcp.TensorProperties(dtype=dtype)
            found = tensors.setdefault(key, dcp.TensorStorageMetadata(properties, size, []))
            offsets = torch.Size(chunk.offsets)
            found.chunks.append(dcp.ChunkStorageMetadata(offsets, torch.Size(chunk.sizes)))
            storage[dcp.MetadataIndex(key, offsets)] = _StorageInfo(*where)
    blob = io.BytesIO()
    torch.save([None], blob)
    file = "__objects.distcp"
    (folder / file).write_bytes(blob.getvalue())
    states: dict[str, Any] = dict(tensors)
    for key in objects:
        states[key] = dcp.BytesStorageMetadata()
        storage[dcp.MetadataIndex(key)] = _StorageInfo(file, 0, len(blob.getvalue()))
    with (folder / ".metadata").open("wb") as opened:
        pickle.dump(dcp.Metadata(state_dict_metadata=states, storage_data=storage), opened)
    blob = io.BytesIO()  # a full disk has a name when Python writes the file
    torch.save(common, blob)
    (folder / "common.pt").write_bytes(blob.getvalue())
    (folder / "metadata.json").write_text(json.dumps(BACKEND))


def read_tables(folder: Path) -> dict[str, StoredTensor]:
    """The tensors of a checkpoint; raises DataError where its tables or files are not whole."""
    file = folder / ".metadata"
    try:
        with file.open("rb") as opened:
            found = _Tables(opened).load()
        states: Mapping[str, Any] = found.state_dict_metadata
        storage = {(index.fqn, index.offset): info for index, info in found.storage_data.items()}
    except FileNotFoundError:
        raise DataError(
            f"{folder}: there is no .metadata in it: give the folder of a torch_dist checkpoint "
            "(iter_0000100, release, or the one above with latest_checkpointed_iteration.txt)"
        ) from None
    except (pickle.UnpicklingError, EOFError, AttributeError, ValueError, KeyError) as error:
        raise DataError(f"{file}: cannot be read ({error}); copy the checkpoint again") from None
    sizes: dict[str, int] = {}
    tensors = {}
    for key, state in states.items():
        if not isinstance(state, dcp.TensorStorageMetadata):
            continue
        parts = []
        for chunk in state.chunks:
            info = storage.get((key, chunk.offsets))
            if info is None:
                raise DataError(f"{file}: {key} {list(chunk.offsets)} has no place in any file")
            _check_file(folder, info, key, sizes)
            end = tuple(map(sum, zip(chunk.offsets, chunk.sizes, strict=True)))
            box = Box(tuple(chunk.offsets), end)
            parts.append(Stored(box, folder / info.relative_path, info.offset, info.length))
        tensors[key] = StoredTensor(key, state.properties.dtype, tuple(state.size), tuple(parts))
    return tensors


def _check_file(folder: Path, info: Any, key: str, sizes: dict[str, int]) -> None:
    name = info.relative_path
    if name not in sizes:
        if Path(name).name != name:
            raise DataError(f"{folder / '.metadata'}: {key} is said to lie outside, in {name}")
        if not (folder / name).exists():
            raise DataError(f"{folder / name}: missing, though .metadata says that {key} is in it")
        sizes[name] = (folder / name).stat().st_size
    if info.offset + info.length > sizes[name]:
        raise DataError(
            f"{folder / name}: truncated: {key} ends at byte {info.offset + info.length} and the "
            f"file at {sizes[name]}; copy it again"
        )


class _Tables(pickle.Unpickler):
    """Reads `.metadata`, and refuses what no table of contents needs."""

    def find_class(self, module: str, name: str) -> Any:
        found = None
        if (module, name) in PLAIN:
            found = super().find_class(module, name)
        elif module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            found = getattr(torch, name)
        elif module.startswith("torch.distributed.checkpoint."):
            found = super().find_class(module, name)
            found = found if isinstance(found, type) else None
        elif name in ("MCoreSavePlan", "MCoreMetadata"):
            found = dcp.Metadata  # older Megatron-Core's own classes, with the same fields
        elif (module, name) == ("builtins", "getattr"):
            found = _enum_member
        if found is None:
            raise pickle.UnpicklingError(f"it holds {module}.{name}, which no checkpoint needs")
        return found


def _enum_member(kind: Any, name: Any) -> Any:
    """What getattr stands for in a pickle of Python 3.11.0 to 3.11.3: the member of an enum."""
    if isinstance(kind, type) and issubclass(kind, Enum) and name in kind.__members__:
        return kind[name]
    raise pickle.UnpicklingError(f"it holds getattr of {kind}, which no checkpoint needs")

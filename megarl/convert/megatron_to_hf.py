"""A torch_dist checkpoint becomes a Hugging Face folder, block by block."""

from __future__ import annotations

from pathlib import Path

import torch

from megarl.convert.aside import written_aside
from megarl.convert.block_job import BlockJob, write_blocks
from megarl.convert.find import Rows, find_entries
from megarl.convert.hf_rows import NAMES
from megarl.convert.hf_to_megatron import COMPANIONS, RELEASE, SPARE_BYTES, TRACKER, Verify
from megarl.convert.stored import Entry, entries
from megarl.convert.tables import read_tables
from megarl.convert.workers import num_jobs, run_jobs
from megarl.errors import ConfigError, DataError
from megarl.layout import hf_tensors, with_scalar_head
from megarl.validate.models import read_model
from megarl.weights.folder import (
    change_config,
    copy_companions,
    head_keys,
    shard_name,
    shard_tensors,
    write_index,
)

MAX_SHARD_BYTES = 5_000_000_000
TABLES = ".metadata"
"""The file of a checkpoint that says where its tensors are."""
VALUE_HEAD = "value_head.weight"


def megatron_to_hf(
    source: Path,
    target: Path,
    *,
    hf: Path | None = None,
    dtype: torch.dtype | None = None,
    workers: int = 1,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    verify: Verify | None = None,
) -> None:
    """Write a Hugging Face folder from a checkpoint that was saved under any layout.

    source: a checkpoint's folder, or the one above it. hf: where config.json and tokenizer are
    taken from; None: the folder `hf` beside the checkpoint. dtype: None keeps the stored one. Where
    the checkpoint came from a conversion, every tensor's digest must be what it was then; `verify`
    may refuse the whole before it gets its name. Raises
    ConfigError or DataError before anything is written, VerificationError and RunError later.
    """
    folder = checkpoint_folder(source)
    template = hf or _template(folder)
    tensors = read_tables(folder)
    config, shape = read_model(template, "hf")
    if VALUE_HEAD in tensors and shape.scalar_head is None:
        shape = with_scalar_head(shape)
    found = find_entries(entries(shape), tensors, str(folder))
    dtype = dtype or _only_dtype(found, folder)
    shapes = hf_tensors(shape)
    files = list(shard_tensors(shapes, dtype.itemsize, max_shard_bytes))
    names = [shard_name(index, len(files)) for index in range(len(files))]
    total = sum(torch.Size(size).numel() for size in shapes.values()) * dtype.itemsize
    with written_aside(target, total + SPARE_BYTES) as partial:
        copy_companions(template, partial)
        count = min(num_jobs(workers, total), len(files))
        each = [(name, tuple(file)) for name, file in zip(names, files, strict=True)]
        jobs = [
            BlockJob(folder, partial, shape, dtype, tuple(each[worker::count]), found)
            for worker in range(count)
        ]
        run_jobs("megatron-to-hf", write_blocks, jobs, total)
        if len(files) > 1:
            index = {name: names[i] for i, file in enumerate(files) for name in file}
            write_index(partial, index, total)
        change_config(partial, dtype, **head_keys(shape, config))
        if verify is not None:
            verify(partial, folder)


def checkpoint_folder(source: Path) -> Path:
    """The folder with the tensors: `source`, or the one that its tracker file names.

    Where a run keeps a folder for each role, the one there is. ConfigError where there are several.
    """
    if not source.is_dir():
        raise ConfigError(f"{source}: there is no such folder; give that of a checkpoint")
    tracker, folder = source / TRACKER, source
    if not (source / TABLES).exists() and tracker.exists():
        text = tracker.read_text().strip()
        if text != RELEASE and not text.isdigit():
            wanted = f"an iteration or {RELEASE} is expected"
            raise DataError(f"{tracker}: it says {text[:40]!r}: {wanted}")
        folder = source / (text if text == RELEASE else f"iter_{int(text):07d}")
    roles = sorted(table.parent for table in folder.glob(f"*/{TABLES}"))
    if (folder / TABLES).exists() or not roles:
        return folder
    if len(roles) > 1:
        each = ", ".join(map(str, roles))
        raise ConfigError(f"{folder} holds a checkpoint of each role: give one of {each}")
    return roles[0]


def _template(folder: Path) -> Path:
    for beside in (folder.parent / COMPANIONS, folder / COMPANIONS):
        if (beside / "config.json").exists():
            return beside
    raise ConfigError(
        f"{folder.parent / COMPANIONS}: there is no config.json: say with --hf which Hugging Face "
        "folder has this model's config and tokenizer"
    )


def _only_dtype(found: dict[Entry, tuple[Rows, ...]], folder: Path) -> torch.dtype:
    types = {rows.tensor.dtype: rows.tensor.key for each in found.values() for rows in each}
    if len(types) > 1:
        each = ", ".join(f"{key} is {dtype}" for dtype, key in sorted(types.items(), key=str))
        raise DataError(f"{folder}: the tensors are of several types: {each}; say --dtype")
    dtype = next(iter(types))
    if dtype not in NAMES.values():
        raise DataError(f"{folder}: {types[dtype]} is {dtype}; converted are {', '.join(NAMES)}")
    return dtype

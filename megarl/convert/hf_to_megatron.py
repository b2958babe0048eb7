"""A Hugging Face folder becomes a torch_dist checkpoint, chunk by chunk."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import torch

from megarl.convert.arguments import common_state
from megarl.convert.aside import written_aside
from megarl.convert.chunk_job import ChunkJob, Written, write_chunks
from megarl.convert.digests import Seen, tensor_digest, write_digests
from megarl.convert.hf_rows import HfRows
from megarl.convert.stored import Chunk, entries, objects
from megarl.convert.tables import write_tables
from megarl.convert.workers import num_jobs, run_jobs
from megarl.errors import DataError
from megarl.layout import ModelShape, hf_tensors
from megarl.validate.files import not_read
from megarl.validate.models import read_model
from megarl.weights.folder import copy_companions
from megarl.weights.source import SafetensorsFolder

RELEASE = "release"
"""Megatron's name for weights that no iteration of its own made."""
TRACKER = "latest_checkpointed_iteration.txt"
COMPANIONS = "hf"
"""Folder beside the weights with config.json, tokenizer and the like."""
Verify = Callable[[Path, Path], None]
"""Raises where a Hugging Face folder and a checkpoint's folder are not the same model."""
SPARE_BYTES = 64 << 20
"""Room on the disk for tables and companions."""


def hf_to_megatron(
    source: Path,
    target: Path,
    *,
    dtype: torch.dtype | None = None,
    workers: int = 1,
    verify: Verify | None = None,
) -> None:
    """Write `target`/release (torch_dist) and `target`/hf from a Hugging Face folder.

    dtype: None keeps the files' own, which must be one. Every chunk is read back from the file and
    compared with what came in, by digest; `verify` may refuse the whole before it gets its name.
    Raises ConfigError or DataError before anything is
    written for a source, target or disk that will not do; VerificationError and RunError later.
    """
    hf, shape = read_model(source, "source")
    folder = SafetensorsFolder(source)
    folder.check(hf_tensors(shape), not_read(folder, shape))
    dtype = dtype or _only_dtype(folder, shape)
    chunks = [chunk for entry in entries(shape) for chunk in entry.chunks()]
    total = sum(chunk.numel for chunk in chunks) * dtype.itemsize
    with written_aside(target, total + SPARE_BYTES) as partial:
        release = partial / RELEASE
        release.mkdir()
        copy_companions(source, partial / COMPANIONS)
        jobs = [
            ChunkJob(source, release, shape, dtype, number, first, last)
            for number, (first, last) in enumerate(_cut(chunks, num_jobs(workers, total)))
        ]
        answers: list[Written] = run_jobs("hf-to-megatron", write_chunks, jobs, total)
        places = [where for answer in answers for where in answer.where]
        write_digests(release, dtype, _merge(answers))
        write_tables(
            release,
            zip(chunks, places, strict=True),
            dtype,
            objects(shape),
            common_state(hf, shape, dtype),
        )
        (partial / TRACKER).write_text(RELEASE)
        if verify is not None:
            verify(source, release)


def _only_dtype(folder: SafetensorsFolder, shape: ModelShape) -> torch.dtype:
    rows = HfRows(folder)
    try:
        found = {rows.dtype(tensor): tensor for tensor in reversed(hf_tensors(shape))}
    finally:
        rows.close()
    if len(found) > 1:
        each = ", ".join(
            f"{tensor} is {str(dtype).removeprefix('torch.')} ({folder.file_of(tensor).name})"
            for dtype, tensor in sorted(found.items(), key=str)
        )
        raise DataError(
            f"{folder.folder}: the tensors are of several types: {each}; say which one with --dtype"
        )
    return next(iter(found))


def _cut(chunks: list[Chunk], workers: int) -> list[tuple[int, int]]:
    """Runs of chunks of about the same size, at most one for each worker."""
    total = sum(chunk.numel for chunk in chunks)
    runs: list[tuple[int, int]] = []
    first = size = 0
    for number, chunk in enumerate(chunks):
        size += chunk.numel
        if size * workers >= total * (len(runs) + 1):
            runs.append((first, number + 1))
            first = number + 1
    return runs


def _merge(answers: list[Written]) -> dict[str, str]:
    seen: defaultdict[str, list[Seen]] = defaultdict(list)
    for answer in answers:
        for tensor, found in answer.seen.items():
            seen[tensor] += found
    return {tensor: tensor_digest(found) for tensor, found in seen.items()}

"""Corpora to Megatron's indexed data sets: tokenized in parallel, written in order."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megarl.data.chunks import Chunk, chunks_of
from megarl.data.tokenize_chunk import ChunkTokenizer, Documents, begin_worker, work
from megarl.errors import ConfigError, DataError, RunError
from megarl.observe.progress import Progress
from megarl.runtime.aside import FULL, check_writable, disk_full, sync, sync_tree, work_folder

MB = 1_000_000
AHEAD = 3
"""Chunks per worker that may wait for those before them."""


@dataclass(slots=True)
class Written:
    """One data set that was made."""

    prefix: Path
    """`<prefix>.bin` and `<prefix>.idx`, as `data.indexed.blend` names it."""
    num_documents: int = 0
    num_tokens: int = 0
    num_empty: int = 0
    """Texts without a token, which are not in it."""


def preprocess(
    inputs: Sequence[Path],
    output_prefix: Path,
    tokenizer: str,
    *,
    columns: Sequence[str] = ("text",),
    append_eod: bool = False,
    workers: int = 1,
    progress: bool = True,
) -> list[Written]:
    """Write `<output_prefix>_<column>_document.bin` and `.idx` for each column.

    inputs: .jsonl or .parquet files, in this order. tokenizer: a Hugging Face folder. The files
    are the same, byte for byte, for every number of workers. They get their names when they are
    whole; the index last, without which there is no data set.

    ConfigError before anything is written for outputs that cannot be or exist already, inputs that
    are not there and tokenizers that cannot be read. DataError, with file and row, for a row that
    cannot be used; RunError for a disk that fills up. Nothing stays behind then.
    """
    if workers < 1:
        raise ConfigError(f"--workers is {workers}: give 1 or more")
    if len(set(columns)) < len(columns):
        raise ConfigError(f"--json-keys names a column twice: {', '.join(columns)}")
    prefixes = [Path(f"{output_prefix}_{column}_document") for column in columns]
    for file in (Path(f"{prefix}{end}") for prefix in prefixes for end in (".bin", ".idx")):
        if file.exists() or file.is_symlink():
            raise ConfigError(f"{file} exists already: remove it, or give another --output-prefix")
    check_writable(
        output_prefix, f"--output-prefix {output_prefix}", "give a prefix in another folder"
    )
    chunks = chunks_of(inputs)
    arguments = (tokenizer, tuple(columns), append_eod)
    ready = ChunkTokenizer(*arguments)
    with work_folder(output_prefix.with_name(output_prefix.name + ".partial")) as folder:
        with ExitStack() as stack:
            results = (
                map(ready.documents, chunks)
                if min(workers, len(chunks)) <= 1
                else _in_processes(stack, chunks, arguments, min(workers, len(chunks)))
            )
            bar = stack.enter_context(_Bar(chunks, progress))
            written = _write(folder, prefixes, chunks, results, ready.dtype, bar)
        for one in written:
            if not one.num_documents:
                raise DataError(
                    f"{', '.join(map(str, inputs))}: there is no text to write: "
                    f"{one.num_empty} texts, all of them empty"
                )
        _publish(folder, prefixes)
    return written


def _write(
    folder: Path,
    prefixes: Sequence[Path],
    chunks: Sequence[Chunk],
    results: Iterator[list[Documents]],
    dtype: Any,
    bar: _Bar,
) -> list[Written]:
    """All chunks, in order, by Megatron-Core's own builder."""
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    written = [Written(prefix) for prefix in prefixes]
    files = [folder / prefix.name for prefix in prefixes]
    builders = [IndexedDatasetBuilder(f"{file}.bin", dtype=dtype) for file in files]
    try:
        for chunk, found in zip(chunks, results, strict=True):
            for builder, documents, one in zip(builders, found, written, strict=True):
                begin = 0
                for length in documents.lengths:
                    builder.add_document(documents.tokens[begin : begin + length], [length])
                    begin += length
                one.num_documents += len(documents.lengths)
                one.num_tokens += begin
                one.num_empty += documents.num_empty
            bar.advance(chunk.size_bytes, len(found[0].lengths))
        for builder, file in zip(builders, files, strict=True):
            builder.finalize(f"{file}.idx")
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise disk_full(f"{prefixes[0]}.bin", error) from None
    finally:
        for builder in builders:
            _close(builder.data_file)
    return written


def _close(file: Any) -> None:
    """Close a file that may have failed: what it holds back then is of no use."""
    try:
        file.close()
    except OSError as error:
        if error.errno not in FULL:
            raise


def _publish(folder: Path, prefixes: Sequence[Path]) -> None:
    """Give the files their names, the indices last."""
    sync_tree(folder)
    for end in (".bin", ".idx"):
        for prefix in prefixes:
            os.rename(folder / f"{prefix.name}{end}", f"{prefix}{end}")
        sync(prefixes[0].absolute().parent)


def _in_processes(
    stack: ExitStack, chunks: Sequence[Chunk], arguments: tuple[Any, ...], workers: int
) -> Iterator[list[Documents]]:
    """What `work` returns, in the order of the chunks; few of them are in memory at a time."""
    pool = ProcessPoolExecutor(
        workers, multiprocessing.get_context("spawn"), begin_worker, arguments
    )
    stack.callback(pool.shutdown, wait=True, cancel_futures=True)
    waiting: deque[Future[list[Documents] | DataError]] = deque()
    left = iter(chunks)

    def submit() -> None:
        for chunk in left:
            waiting.append(pool.submit(work, chunk))
            return

    def results() -> Iterator[list[Documents]]:
        try:
            for _ in range(AHEAD * workers):
                submit()
            while waiting:
                found = waiting.popleft().result()
                if isinstance(found, DataError):
                    raise found
                submit()
                yield found
        except BrokenProcessPool:
            raise RunError(
                "a worker ended without a word: it was killed, or memory ran out (give fewer "
                "--workers)"
            ) from None

    return results()


class _Bar:
    """MB of the inputs that are done, with MB/s and documents/s."""

    def __init__(self, chunks: Sequence[Chunk], enabled: bool) -> None:
        self._total = sum(chunk.size_bytes for chunk in chunks)
        self._bar = Progress("preprocess", max(-(-self._total // MB), 1), enabled)
        self._bytes = self._documents = self._shown = 0
        self._started = time.perf_counter()

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def advance(self, num_bytes: int, num_documents: int) -> None:
        """So much more is written."""
        self._bytes += num_bytes
        self._documents += num_documents
        done = -(-self._total // MB) if self._bytes == self._total else self._bytes // MB
        seconds = max(time.perf_counter() - self._started, 1e-9)
        self._bar.advance(
            done - self._shown,
            MB_per_s=self._bytes / MB / seconds,
            documents_per_s=self._documents / seconds,
        )
        self._shown = done

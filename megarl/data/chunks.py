"""A corpus in pieces that can be read apart from each other: bytes of jsonl, groups of parquet."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

from megarl.data.rows import MISSING, Row, column_names, lookup, parse_line
from megarl.errors import ConfigError, DataError

CHUNK_BYTES = 4 << 20
"""Of a jsonl file; a parquet file is read by its row groups."""
_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Chunk:
    """The lines of a jsonl file that begin in bytes [start, stop), or row groups of a parquet."""

    path: Path
    start: int
    stop: int
    size_bytes: int
    """In the file."""

    def texts(self, columns: Sequence[str]) -> Iterator[tuple[str, ...]]:
        """The text of each column, row by row.

        DataError, with file and row, for a row that cannot be read, a column that is not there,
        and a value that is no text.
        """
        parquet = self.path.suffix == ".parquet"
        rows = self._parquet_rows(columns) if parquet else self._jsonl_rows()
        for place, row in rows:
            yield tuple(self._text(row, column, place) for column in columns)

    def _jsonl_rows(self) -> Iterator[tuple[_Place, Row]]:
        with self.path.open("rb") as file:
            at = self.start
            if at:
                # The line that runs into this chunk belongs to the one before.
                file.seek(at - 1)
                at += len(file.readline()) - 1
            while at < self.stop and (line := file.readline()):
                if line.strip():
                    place = _Place(self.path, at)
                    yield place, parse_line(line, place)
                at += len(line)

    def _parquet_rows(self, columns: Sequence[str]) -> Iterator[tuple[_Place, Row]]:
        with _open_parquet(self.path) as file:
            counts = [file.metadata.row_group(group).num_rows for group in range(self.start)]
            number = sum(counts)
            groups = list(range(self.start, self.stop))
            try:
                for batch in file.iter_batches(row_groups=groups, columns=list(columns)):
                    for row in batch.to_pylist():
                        number += 1
                        yield _Place(self.path, number), row
            except _parquet_errors() as error:
                raise DataError(
                    f"{self.path}, after row {number}: not readable as parquet: {error}"
                ) from None

    def _text(self, row: Row, column: str, place: _Place) -> str:
        value = lookup(row, column)
        if value is MISSING:
            names = column_names(row)
            if self.path.suffix == ".parquet":
                with _open_parquet(self.path) as file:
                    names = file.schema_arrow.names
            raise DataError(
                f"{place}: there is no column {column!r}; the columns are: "
                f"{', '.join(names) or 'none'} (--json-keys names the one with the text)"
            )
        if not isinstance(value, str):
            raise DataError(f"{place}: column {column!r} holds {value!r}, which is no text")
        return value


@dataclass(frozen=True, slots=True)
class _Place:
    """A row in words; the number of a line is counted only where somebody wants to read it."""

    path: Path
    at: int
    """Byte of a jsonl file, row of a parquet file."""

    def __str__(self) -> str:
        if self.path.suffix == ".parquet":
            return f"{self.path}, row {self.at}"
        number, left = 1, self.at
        with self.path.open("rb") as file:
            while left and (block := file.read(min(left, _BLOCK_BYTES))):
                number += block.count(b"\n")
                left -= len(block)
        return f"{self.path}, line {number}"


def chunks_of(paths: Sequence[Path], chunk_bytes: int = CHUNK_BYTES) -> list[Chunk]:
    """The files, in order, in chunks; DataError for one that is not there or of another format."""
    found: list[Chunk] = []
    for path in paths:
        if not path.is_file():
            raise DataError(f"--input {path} is not a file: check the path (a .jsonl or .parquet)")
        size = path.stat().st_size
        if path.suffix == ".parquet":
            found += _row_groups(path, size)
        elif path.suffix in (".jsonl", ".json"):
            starts = range(0, size, chunk_bytes)
            stops = [min(start + chunk_bytes, size) for start in starts]
            found += [Chunk(path, a, b, b - a) for a, b in zip(starts, stops, strict=True)]
        else:
            raise DataError(
                f"--input {path} is of an unknown format: give .jsonl (a JSON object a line) or "
                ".parquet files"
            )
    return found


def _row_groups(path: Path, size: int) -> list[Chunk]:
    with _open_parquet(path) as file:
        groups = file.num_row_groups
    ends = list(accumulate([size // max(groups, 1)] * (groups - 1) if groups else [], initial=0))
    sizes = [b - a for a, b in zip(ends, [*ends[1:], size], strict=True)]
    return [Chunk(path, group, group + 1, sizes[group]) for group in range(groups)]


def _open_parquet(path: Path) -> Any:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise ConfigError(f"reading {path} needs pyarrow: pip install pyarrow") from error
    try:
        return pyarrow.parquet.ParquetFile(path)
    except _parquet_errors() as error:
        raise DataError(f"{path}: not readable as parquet: {error}") from None


def _parquet_errors() -> tuple[type[Exception], ...]:
    import pyarrow

    return (pyarrow.ArrowException, OSError)

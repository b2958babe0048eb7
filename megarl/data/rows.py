"""Rows of jsonl and parquet files, with the place each came from."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from megarl.errors import ConfigError, DataError

Row = dict[str, Any]

MISSING = object()


def read_rows(path: Path) -> Iterator[tuple[str, Row]]:
    """(place, row) for each row of the file; place reads "file, line 3" and goes into messages.

    DataError for a file that is not there, of another format, or with an unreadable row.
    """
    if not path.is_file():
        raise DataError(f"data set {path} is not a file: check the path (a .jsonl or .parquet)")
    if path.suffix == ".jsonl":
        return _read_jsonl(path)
    if path.suffix == ".parquet":
        return _read_parquet(path)
    raise DataError(f"data set {path} is of an unknown format: give a .jsonl or a .parquet file")


def write_rows(path: str | Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows as jsonl, one object a line."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps(dict(row), ensure_ascii=False) + "\n" for row in rows)
    Path(path).write_text("".join(lines))


def _read_jsonl(path: Path) -> Iterator[tuple[str, Row]]:
    # Bytes: a line that is not UTF-8 is then one bad line, with its number, and U+2028 is no break.
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                place = f"{path}, line {number}"
                yield place, parse_line(line, place)


def parse_line(line: bytes, place: object) -> Row:
    """The row of a line of jsonl; DataError, naming the place, where it is none."""
    try:
        row = json.loads(line)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{place}: not a JSON object: {error}") from error
    if rb"\ud" in line.lower() and not _is_text(row):
        raise DataError(
            f"{place}: half of a surrogate pair (\\ud8.. to \\udf..) stands alone, which no text "
            "may hold: write the character itself"
        )
    if not isinstance(row, dict):
        kind = type(row).__name__
        raise DataError(f"{place}: a {kind} instead of a JSON object with the columns")
    return row


def _is_text(value: Any) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def _read_parquet(path: Path) -> Iterator[tuple[str, Row]]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ConfigError(f"reading {path} needs pyarrow: pip install pyarrow") from error
    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches():
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path}, row {number}", row
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path}, after row {number}: not readable as parquet: {error}") from error


def lookup(row: Mapping[str, Any], column: str) -> Any:
    """The value of a column, or of a dotted path into nested columns; MISSING if there is none."""
    if column in row:
        return row[column]
    value: Any = row
    for key in column.split("."):
        if not isinstance(value, Mapping) or key not in value:
            return MISSING
        value = value[key]
    return value


def column_names(row: Mapping[str, Any]) -> list[str]:
    """The columns of a row, nested ones as dotted paths."""
    names = []
    for key, value in row.items():
        if isinstance(value, Mapping) and value:
            names += [f"{key}.{name}" for name in column_names(value)]
        else:
            names.append(key)
    return names

"""Texts for pretraining: plain ones, of which every token is learned, or completions of prompts."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megarl.data.rows import MISSING, column_names, lookup, read_rows
from megarl.errors import DataError

_TOKENIZE_AT_ONCE = 1024


@dataclass(frozen=True, slots=True)
class Text:
    """One text, closed by the end-of-text token."""

    tokens: Tensor
    """int64 [T], T at least 2."""
    prompt_length: int
    """Leading tokens that are given, not learned: at least 1, less than T."""


def write_texts(path: str | Path, rows: Sequence[Mapping[str, str]]) -> None:
    """Write rows as the pretraining stage reads them, one jsonl object each."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps(dict(row), ensure_ascii=False) + "\n" for row in rows)
    Path(path).write_text("".join(lines))


def text_columns(
    path: str | Path, prompt_column: str, label_column: str | None, limit: int | None = None
) -> Iterator[tuple[str, str]]:
    """(prompt, completion) of each row; ("", text of prompt_column) where label_column is None.

    DataError for a column that is not there, or holds something else than text or a number.
    """
    for place, row in islice(read_rows(Path(path)), limit):
        found = []
        for key, column in (("prompt", prompt_column), ("label", label_column)):
            if column is None:
                continue
            value = lookup(row, column)
            if value is MISSING:
                names = ", ".join(column_names(row)) or "none"
                cure = "; or null, which learns all of the text" * (key == "label")
                raise DataError(
                    f"{place}: there is no column {column!r}; the columns are: {names} "
                    f"(data.{key}_column names one{cure})"
                )
            if isinstance(value, bool) or not isinstance(value, str | int | float):
                raise DataError(
                    f"{place}: column {column!r} holds {value!r}, which is no text: pretraining "
                    "reads plain texts"
                )
            found.append(str(value))
        yield (found[0], found[1]) if label_column is not None else ("", found[0])


def read_texts(
    path: str | Path,
    prompt_column: str,
    label_column: str | None,
    tokenizer: Any,
    max_length: int,
) -> list[Text]:
    """All texts, tokenized and cut to max_length.

    Of a completion its prompt is given, of a plain text its first token. Texts that leave nothing
    to predict are left out. DataError for a missing column, and where no text is left.
    """
    rows = list(text_columns(path, prompt_column, label_column))
    found = _tokenize(rows, label_column is None, tokenizer, max_length)
    if not found:
        raise _nothing_to_learn(path, len(rows), max_length)
    return found


def check_texts(
    path: str | Path,
    prompt_column: str,
    label_column: str | None,
    tokenizer: Any,
    max_length: int,
    limit: int | None = None,
) -> None:
    """DataError where `read_texts` would raise one; reads `limit` rows, tokenizes few."""
    count, usable = 0, False
    rows = text_columns(path, prompt_column, label_column, limit)
    while chunk := list(islice(rows, _TOKENIZE_AT_ONCE)):
        count += len(chunk)
        usable = usable or bool(_tokenize(chunk, label_column is None, tokenizer, max_length))
    if not count:
        raise DataError(f"data set {path} is empty: it has no rows")
    if not usable:
        raise _nothing_to_learn(path, count, max_length)


def _tokenize(
    rows: Sequence[tuple[str, str]], plain: bool, tokenizer: Any, max_length: int
) -> list[Text]:
    """Those of the rows that leave a token to learn."""
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]

    def tokenize(texts: list[str], special: bool) -> list[list[int]]:
        # A tokenizer refuses an empty list.
        return list(tokenizer(texts, add_special_tokens=special)["input_ids"]) if texts else []

    heads = [[] for _ in rows] if plain else tokenize([prompt for prompt, _ in rows], True)
    bodies = tokenize([body for _, body in rows], plain)
    texts = (
        Text(torch.tensor((head + body + end)[:max_length]), max(len(head), 1))
        for head, body in zip(heads, bodies, strict=True)
    )
    return [text for text in texts if text.tokens.numel() > text.prompt_length]


def _nothing_to_learn(path: str | Path, count: int, max_length: int) -> DataError:
    return DataError(
        f"{path}: none of its {count} texts has a token to learn within {max_length} tokens "
        "(data.max_prompt_length + data.max_response_length): raise them"
    )

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

    DataError for a column that is not there.
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
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]

    def tokenize(texts: list[str], special: bool) -> list[list[int]]:
        # A tokenizer refuses an empty list.
        return list(tokenizer(texts, add_special_tokens=special)["input_ids"]) if texts else []

    plain = label_column is None
    heads = [[] for _ in rows] if plain else tokenize([prompt for prompt, _ in rows], True)
    bodies = tokenize([body for _, body in rows], plain)
    found = [
        Text(torch.tensor((head + body + end)[:max_length]), max(len(head), 1))
        for head, body in zip(heads, bodies, strict=True)
    ]
    found = [text for text in found if text.tokens.numel() > text.prompt_length]
    if not found:
        raise DataError(
            f"{path}: none of its {len(rows)} texts has a token to learn within {max_length} tokens"
        )
    return found

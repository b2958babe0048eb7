"""Plain texts for pretraining, one jsonl row {"text": ...} each."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megarl.data.rows import MISSING, column_names, lookup, read_rows
from megarl.errors import DataError


def write_texts(path: str | Path, texts: Sequence[str]) -> None:
    """Write texts as the pretraining stage reads them."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts)
    Path(path).write_text("".join(lines))


def read_texts(path: str | Path, column: str, tokenizer: Any, max_length: int) -> list[Tensor]:
    """int64 [T] tokens of every text, closed by the end-of-text token, cut to max_length.

    Texts of a single token are left out: there is nothing to predict. DataError for a missing
    column, and where no text is left.
    """
    texts: list[str] = []
    for place, row in read_rows(Path(path)):
        text = lookup(row, column)
        if text is MISSING:
            raise DataError(f"{place}: no column {column!r}; it has {', '.join(column_names(row))}")
        texts.append(str(text))
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    ids = tokenizer(texts, add_special_tokens=True)["input_ids"] if texts else []
    found = [torch.tensor((one + end)[:max_length]) for one in ids if len(one) + len(end) > 1]
    if not found:
        raise DataError(f"{path}: none of its {len(texts)} texts has two tokens to learn from")
    return found

"""Preferences for a reward model: a prompt, the answer that is preferred, and another."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from megarl.config.schema import DataConfig
from megarl.data.examples import (
    TOKENIZE_AT_ONCE,
    Conversations,
    Dataset,
    Segment,
    column,
    tokenize_segments,
)
from megarl.data.prompts import is_message
from megarl.data.rows import MISSING, Row, lookup, read_rows
from megarl.errors import DataError


@dataclass(frozen=True, slots=True)
class Pair:
    """Two answers to one prompt."""

    prompt_ids: tuple[int, ...]
    chosen_ids: tuple[int, ...]
    """The preferred answer's, with what ends it."""
    rejected_ids: tuple[int, ...]
    margin: float = 0.0
    """By how much the preferred one is to score higher."""


def configured_pairs(
    config: DataConfig, path: str | Path, tokenizer: Any, limit: int | None = None
) -> Dataset[Pair]:
    """The pairs of a file in the run's columns; see `load_pairs`."""
    return load_pairs(
        path,
        tokenizer,
        max_length=config.max_prompt_length + config.max_response_length,
        prompt_key=config.prompt_column,
        chosen_key=config.chosen_column,
        rejected_key=config.rejected_column,
        margin_key=config.margin_column,
        apply_chat_template=config.apply_chat_template,
        limit=limit,
    )


def load_pairs(
    path: str | Path,
    tokenizer: Any,
    *,
    max_length: int,
    prompt_key: str = "prompt",
    chosen_key: str = "chosen",
    rejected_key: str = "rejected",
    margin_key: str | None = None,
    apply_chat_template: bool = False,
    limit: int | None = None,
) -> Dataset[Pair]:
    """Reads a .jsonl or .parquet file.

    Prompts are text or chat messages and answers text, as in `load_examples`. Answers may be whole
    conversations too (lists of messages, TRL's form): what both begin with is the prompt then, and
    there is no prompt column. Pairs with an answer that makes more than max_length tokens with its
    prompt are left out and counted. limit: reads only so many rows.

    DataError, with file and line, for a missing column, equal answers, a margin that is no number,
    and where no row is left.
    """
    path, kept, lengths = Path(path), [], []
    make = _Pairs(tokenizer, prompt_key, chosen_key, rejected_key, margin_key, apply_chat_template)
    rows = islice(read_rows(path), limit)
    while chunk := list(islice(rows, TOKENIZE_AT_ONCE)):
        for pair in make(chunk):
            lengths.append(len(pair.prompt_ids) + max(len(pair.chosen_ids), len(pair.rejected_ids)))
            if lengths[-1] <= max_length:
                kept.append(pair)
    if not lengths:
        raise DataError(f"data set {path} is empty: it has no rows")
    if not kept:
        raise DataError(
            f"data set {path}: all {len(lengths)} pairs are longer than {max_length} tokens "
            f"(max_prompt_length + max_response_length; the shortest has {min(lengths)}): raise "
            "them"
        )
    return Dataset(tuple(kept), len(lengths) - len(kept))


class _Pairs:
    """Makes the pairs of some rows."""

    def __init__(
        self,
        tokenizer: Any,
        prompt_key: str,
        chosen_key: str,
        rejected_key: str,
        margin_key: str | None,
        apply_chat_template: bool,
    ) -> None:
        self._tokenizer = tokenizer
        self._talks = Conversations(tokenizer, apply_chat_template)
        self._prompt, self._margin = prompt_key, margin_key
        self._chosen, self._rejected = chosen_key, rejected_key

    def __call__(self, rows: Sequence[tuple[str, Row]]) -> Iterator[Pair]:
        both = [segments for place, row in rows for segments in self._segments(place, row)]
        ids = tokenize_segments(both, self._tokenizer)
        for (place, row), chosen, rejected in zip(rows, ids[0::2], ids[1::2], strict=True):
            *prompt, preferred = chosen
            other = rejected[-1]
            if preferred == other:
                raise DataError(f"{place}: both answers are the same: nothing can be preferred")
            head = tuple(token for part in prompt for token in part)
            yield Pair(head, tuple(preferred), tuple(other), self._margin_of(place, row))

    def _segments(self, place: str, row: Row) -> tuple[list[Segment], list[Segment]]:
        """Prompt and answer, of each of the two answers."""
        chosen = column(place, row, self._chosen, "chosen")
        rejected = column(place, row, self._rejected, "rejected")
        if isinstance(chosen, list) and isinstance(rejected, list):
            prompt = self._common(place, row, chosen, rejected)
            count = len(prompt) if lookup(row, self._prompt) is MISSING else 0
            answers = chosen[count:], rejected[count:]
            if any(len(a) != 1 or not is_message(a[0]) for a in answers):
                raise DataError(
                    f"{place}: {self._chosen!r} and {self._rejected!r} must each have one message "
                    "after what they have in common"
                )
            chosen, rejected = (answer[0]["content"] for answer in answers)
        else:
            prompt = column(place, row, self._prompt, "prompt")
        make = self._talks.answer
        return (
            make(place, prompt, chosen, self._chosen),
            make(place, prompt, rejected, self._rejected),
        )

    def _common(self, place: str, row: Row, chosen: list[Any], rejected: list[Any]) -> Any:
        """The prompt column where there is one, or the messages that both begin with."""
        given = lookup(row, self._prompt)
        if given is not MISSING:
            return given
        same = 0
        for one, other in zip(chosen, rejected, strict=False):
            if one != other:
                break
            same += 1
        if not same:
            raise DataError(f"{place}: the two conversations have no message in common: no prompt")
        return chosen[:same]

    def _margin_of(self, place: str, row: Row) -> float:
        if self._margin is None:
            return 0.0
        value = column(place, row, self._margin, "margin")
        if isinstance(value, bool) or not isinstance(value, int | float) or value != value:
            raise DataError(f"{place}: column {self._margin!r} holds {value!r}, which is no number")
        return float(value)

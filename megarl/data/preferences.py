"""Preferences for a reward model: a prompt with two answers, of which one was preferred."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from megarl.config.schema import DataConfig
from megarl.data.dataset import Dataset
from megarl.data.prompts import PromptTemplate, Tokenizer
from megarl.data.rows import MISSING, Row, column_names, lookup, read_rows
from megarl.errors import DataError

_TOKENIZE_AT_ONCE = 1024


class PairTokenizer(Tokenizer, Protocol):
    """The part of a Hugging Face tokenizer that preferences need."""

    eos_token_id: int | None


@dataclass(frozen=True, slots=True)
class Pair:
    """One comparison, in the tokens that a rollout of the same texts would have."""

    prompt_ids: tuple[int, ...]
    chosen_ids: tuple[int, ...]
    """The preferred answer, closed by the eos token."""
    rejected_ids: tuple[int, ...]
    """The other one, closed by the eos token."""
    margin: float
    """By how much the scores should differ at least; 0 where nothing is said."""


@dataclass(frozen=True, slots=True)
class PairDataset(Dataset[Pair]):
    """Comparisons in the order of the file."""

    undecided: int
    """Left out since both answers are the same."""


def configured_pairs(
    config: DataConfig, path: str | Path, tokenizer: Any, limit: int | None = None
) -> PairDataset:
    """The comparisons of a file in the run's columns; see `load_preferences`."""
    return load_preferences(
        path,
        tokenizer,
        max_prompt_length=config.max_prompt_length,
        max_response_length=config.max_response_length,
        prompt_key=config.prompt_column,
        chosen_key=config.chosen_column,
        rejected_key=config.rejected_column,
        margin_key=config.margin_column,
        apply_chat_template=config.apply_chat_template,
        limit=limit,
    )


def load_preferences(
    path: str | Path,
    tokenizer: PairTokenizer,
    *,
    max_prompt_length: int,
    max_response_length: int,
    prompt_key: str = "prompt",
    chosen_key: str = "chosen",
    rejected_key: str = "rejected",
    margin_key: str = "margin",
    apply_chat_template: bool = False,
    limit: int | None = None,
) -> PairDataset:
    """Reads a .jsonl or .parquet file.

    The prompt is text or chat messages, as in `load_prompts`, and the answers are texts; or, as
    TRL has them, the answers are lists of chat messages that end with the assistant's. What the
    two lists begin with alike is then the prompt, after that of the prompt column where it begins
    with an answer or not at all. Answers are tokenized apart from the prompt, as they would be
    generated. Lengths are in tokens, the answers' with eos. limit: reads only so many rows.

    DataError for a missing file or column, a row that is none of these, a tokenizer without eos,
    and when no pair is left.
    """
    path = Path(path)
    if tokenizer.eos_token_id is None:
        raise DataError(
            "the tokenizer has no eos_token: an answer's score is read at the token that ends it; "
            "name one in tokenizer_config.json"
        )
    columns = _Columns(prompt_key, chosen_key, rejected_key, margin_key)
    template = PromptTemplate(tokenizer, apply_chat_template)
    pairs: list[Pair] = []
    num_rows = undecided = dropped = 0
    rows = islice(read_rows(path), limit)
    while chunk := list(islice(rows, _TOKENIZE_AT_ONCE)):
        num_rows += len(chunk)
        for pair in _tokenize(chunk, columns, template, tokenizer):
            longest = max(len(pair.chosen_ids), len(pair.rejected_ids))
            if len(pair.prompt_ids) > max_prompt_length or longest > max_response_length:
                dropped += 1
            elif pair.chosen_ids == pair.rejected_ids:
                undecided += 1
            else:
                pairs.append(pair)
    if not pairs:
        raise DataError(
            f"data set {path} has no pair to learn from: {num_rows} rows, {dropped} of them longer "
            f"than max_prompt_length {max_prompt_length} or max_response_length "
            f"{max_response_length} tokens, {undecided} with the same answer twice"
        )
    return PairDataset(tuple(pairs), dropped, undecided)


def _tokenize(
    chunk: Sequence[tuple[str, Row]],
    columns: _Columns,
    template: PromptTemplate,
    tokenizer: PairTokenizer,
) -> Iterator[Pair]:
    """The pair of each row, however long."""
    assert tokenizer.eos_token_id is not None
    found = [columns.read(place, row) for place, row in chunk]
    prompts = [
        template.render(one.prompt, place) for one, (place, _) in zip(found, chunk, strict=True)
    ]
    answers = [answer for one in found for answer in (one.chosen, one.rejected)]
    ids = iter(tokenizer(answers, add_special_tokens=False)["input_ids"])
    heads = template.tokenize(prompts)
    for one, head, (place, _) in zip(found, heads, chunk, strict=True):
        if not head:
            raise DataError(f"{place}: the prompt is empty: a model needs at least one token")
        chosen, rejected = ((*next(ids), tokenizer.eos_token_id) for _ in range(2))
        yield Pair(tuple(head), chosen, rejected, one.margin)


@dataclass(frozen=True, slots=True)
class _Comparison:
    """A row in its parts."""

    prompt: Any
    """Text, or chat messages."""
    chosen: str
    rejected: str
    margin: float


@dataclass(frozen=True, slots=True)
class _Columns:
    """Which column is what."""

    prompt: str
    chosen: str
    rejected: str
    margin: str

    def read(self, place: str, row: Row) -> _Comparison:
        chosen, rejected = (self._find(place, row, key) for key in (self.chosen, self.rejected))
        margin = self._margin(place, row)
        for key, value in ((self.chosen, chosen), (self.rejected, rejected)):
            if not isinstance(value, str) and not _are_messages(value):
                raise DataError(
                    f"{place}: {key} is neither text nor a list of chat messages "
                    f'{{"role": ..., "content": ...}}: {str(value)[:80]!r}'
                )
        if isinstance(chosen, str) != isinstance(rejected, str):
            raise DataError(
                f"{place}: one of {self.chosen} and {self.rejected} is text and the other a list "
                "of chat messages: give both alike"
            )
        if isinstance(chosen, str):
            return _Comparison(self._find(place, row, self.prompt), chosen, rejected, margin)
        shared = list(_shared(chosen, rejected))
        ends = [messages[len(shared) :] for messages in (chosen, rejected)]
        if any(len(end) != 1 or end[0]["role"] != "assistant" for end in ends):
            raise DataError(
                f"{place}: {self.chosen} and {self.rejected} must differ in their last message "
                f"alone, the assistant's: after the {len(shared)} messages that they share they "
                f"have {len(ends[0])} and {len(ends[1])}"
            )
        if not shared or shared[0]["role"] == "assistant":
            shared = [*self._messages(place, row), *shared]
        return _Comparison(shared, ends[0][0]["content"], ends[1][0]["content"], margin)

    def _messages(self, place: str, row: Row) -> list[Any]:
        """The prompt column's, as messages."""
        prompt = self._find(place, row, self.prompt)
        if isinstance(prompt, str):
            return [{"role": "user", "content": prompt}]
        if not isinstance(prompt, list):
            raise DataError(
                f"{place}: {self.prompt} is neither text nor a list of chat messages: "
                f"{str(prompt)[:80]!r}"
            )
        return prompt

    def _margin(self, place: str, row: Row) -> float:
        value = lookup(row, self.margin)
        if value is MISSING or value is None:
            return 0.0
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not math.isfinite(value):
            raise DataError(f"{place}: {self.margin} is {value!r}: give a number, or no column")
        return float(value)

    def _find(self, place: str, row: Row, key: str) -> Any:
        if (value := lookup(row, key)) is not MISSING:
            return value
        raise DataError(
            f"{place}: there is no column {key!r}; the columns are: "
            f"{', '.join(column_names(row)) or 'none'}"
        )


def _shared(chosen: Sequence[Any], rejected: Sequence[Any]) -> Iterator[Any]:
    """The messages that both begin with; the last of each is its answer, even if they are equal."""
    for one, other in zip(chosen[:-1], rejected[:-1], strict=False):
        if one != other:
            return
        yield one


def _are_messages(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_is_message, value))


def _is_message(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and isinstance(value.get("role"), str)
        and isinstance(value.get("content"), str)
    )

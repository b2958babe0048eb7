"""The data set of prompts: read, templated, tokenized, filtered by length."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from megarl.config.schema import DataConfig
from megarl.data.dataset import Dataset
from megarl.data.rows import MISSING, Row, column_names, lookup, read_rows
from megarl.errors import DataError
from megarl.types import Prompt

# The usual name of a column, then what verl's data sets call it.
_ALIASES = {
    "label": ("label", "reward_model.ground_truth"),
    "source": ("source", "data_source"),
}
_TOKENIZE_AT_ONCE = 1024


class Tokenizer(Protocol):
    """The part of a Hugging Face tokenizer that prompts need."""

    chat_template: Any

    def __call__(self, text: list[str], *, add_special_tokens: bool) -> Mapping[str, Any]:
        """{"input_ids": token ids of each text}."""

    def apply_chat_template(
        self, conversation: list[dict[str, Any]], *, tokenize: bool, add_generation_prompt: bool
    ) -> Any:
        """The conversation as one text."""


def configured_prompts(
    config: DataConfig, path: str | Path, tokenizer: Tokenizer, limit: int | None = None
) -> Dataset[Prompt]:
    """The prompts of a file in the run's columns; DataError as in `load_prompts`."""
    return load_prompts(
        path,
        tokenizer,
        max_prompt_length=config.max_prompt_length,
        prompt_key=config.prompt_column,
        label_key=config.label_column,
        source_key=config.source_column,
        apply_chat_template=config.apply_chat_template,
        limit=limit,
    )


def load_prompts(
    path: str | Path,
    tokenizer: Tokenizer,
    *,
    max_prompt_length: int,
    prompt_key: str = "prompt",
    label_key: str | None = "label",
    source_key: str | None = "source",
    apply_chat_template: bool = False,
    limit: int | None = None,
) -> Dataset[Prompt]:
    """Reads a .jsonl or .parquet file.

    A prompt is text, or a list of chat messages that goes through the tokenizer's chat template
    with the generation prompt added; `apply_chat_template` sends plain text through it too, as one
    user message. Keys are column names or dotted paths; "label" also finds
    reward_model.ground_truth and "source" data_source (verl's names). label_key None: no labels;
    without a source column the file's name is the source. Columns that are none of these go into
    `Prompt.extra`. prompt_id is the row's number in the file, from 0, so that it does not change
    with max_prompt_length (tokens). limit: reads only so many rows.

    DataError for a missing file or column, an unreadable row, and when no prompt is left.
    """
    path = Path(path)
    keys = _Keys(prompt_key, label_key, source_key, default_source=path.stem)
    template = PromptTemplate(tokenizer, apply_chat_template)
    prompts: list[Prompt] = []
    num_rows, shortest = 0, None
    rows = islice(read_rows(path), limit)
    while chunk := list(islice(rows, _TOKENIZE_AT_ONCE)):
        raw = [keys.prompt(place, row) for place, row in chunk]
        texts = [
            template.render(prompt, place) for prompt, (place, _) in zip(raw, chunk, strict=True)
        ]
        for (place, row), prompt, (text, _), ids in zip(
            chunk, raw, texts, template.tokenize(texts), strict=True
        ):
            if not ids:
                raise DataError(f"{place}: the prompt is empty: a model needs at least one token")
            shortest = min(len(ids), shortest or len(ids))
            if len(ids) <= max_prompt_length:
                label, source, extra = keys.rest(place, row)
                question = "" if isinstance(prompt, str) else str(prompt[-1]["content"])
                made = Prompt(num_rows, tuple(ids), text, label, source, extra, question)
                prompts.append(made)
            num_rows += 1
    if not num_rows:
        raise DataError(f"data set {path} is empty: it has no rows")
    if not prompts:
        raise DataError(
            f"data set {path}: all {num_rows} prompts are longer than max_prompt_length "
            f"{max_prompt_length} (the shortest has {shortest} tokens): raise it"
        )
    return Dataset(tuple(prompts), num_rows - len(prompts))


@dataclass(frozen=True, slots=True)
class _Keys:
    """Which column is what."""

    prompt_key: str
    label_key: str | None
    source_key: str | None
    default_source: str

    def prompt(self, place: str, row: Row) -> Any:
        return self._find(place, row, self.prompt_key)

    def rest(self, place: str, row: Row) -> tuple[str, str, dict[str, Any]]:
        """(label, source, extra)."""
        label = None if self.label_key is None else self._find(place, row, self.label_key)
        source = self._source(place, row)
        used = {self.prompt_key, self.label_key, self.source_key}
        used |= {alias for key in used & _ALIASES.keys() if key for alias in _ALIASES[key]}
        return _as_text(label), source, {k: v for k, v in row.items() if k not in used}

    def _source(self, place: str, row: Row) -> str:
        if self.source_key is None:
            return self.default_source
        optional = self.source_key == "source"
        found = self._find(place, row, self.source_key, optional=optional)
        return _as_text(found) or self.default_source

    def _find(self, place: str, row: Row, key: str, *, optional: bool = False) -> Any:
        for name in _ALIASES.get(key, (key,)):
            if (value := lookup(row, name)) is not MISSING:
                return value
        if optional:
            return None
        columns = ", ".join(column_names(row)) or "none"
        raise DataError(
            f"{place}: there is no column {key!r}; the columns are: {columns}. Name the right one "
            "in the data settings (a dotted path reaches into nested columns)"
        )


def _as_text(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, default=str)


class PromptTemplate:
    """Turns what stands in the prompt column into text and tokens."""

    def __init__(self, tokenizer: Tokenizer, wrap_plain_text: bool) -> None:
        self._tokenizer = tokenizer
        self._wrap_plain_text = wrap_plain_text

    def render(self, prompt: Any, place: str) -> tuple[str, bool]:
        """(text, whether it came through the chat template); DataError, naming the place."""
        if isinstance(prompt, str):
            if not self._wrap_plain_text:
                return prompt, False
            prompt = [{"role": "user", "content": prompt}]
        if not isinstance(prompt, list) or not prompt or not all(map(is_message, prompt)):
            raise DataError(
                f"{place}: the prompt is neither text nor a list of chat messages "
                f'{{"role": ..., "content": ...}}: {str(prompt)[:80]!r}'
            )
        return chat_text(self._tokenizer, prompt, place), True

    def tokenize(self, texts: Sequence[tuple[str, bool]]) -> list[list[int]]:
        """Token ids of each text; a template has written the special tokens itself."""
        ids: list[list[int]] = [[] for _ in texts]
        for templated in (False, True):
            rows = [i for i, (_, t) in enumerate(texts) if t is templated]
            if not rows:
                continue
            batch = [texts[i][0] for i in rows]
            encoded = self._tokenizer(batch, add_special_tokens=not templated)["input_ids"]
            for i, row_ids in zip(rows, encoded, strict=True):
                ids[i] = row_ids
        return ids


def chat_text(
    tokenizer: Tokenizer, messages: Sequence[Any], place: str, *, generation: bool = True
) -> str:
    """Chat messages as one text, where `generation` with the start of the answer.

    DataError, with the place, where there is no template or it refuses.
    """
    if not tokenizer.chat_template:
        raise DataError(
            f"{place}: the messages need a chat template and the tokenizer has none: use an "
            "instruction-tuned model's tokenizer, or plain text without apply_chat_template"
        )
    try:
        return str(
            tokenizer.apply_chat_template(
                list(messages), tokenize=False, add_generation_prompt=generation
            )
        )
    except Exception as error:  # A template is a program of its author's, and may raise anything.
        raise DataError(f"{place}: the chat template refuses the messages: {error}") from error


def is_message(value: Any) -> bool:
    """Whether it is one chat message."""
    return isinstance(value, dict) and "role" in value and "content" in value

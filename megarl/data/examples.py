"""Examples for supervised fine-tuning: conversations, of which the answers are learned."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megarl.config.schema import DataConfig
from megarl.data.dataset import Dataset
from megarl.data.prompts import Tokenizer, chat_text, is_message
from megarl.data.rows import MISSING, Row, column_names, lookup, read_rows
from megarl.errors import DataError

Segment = tuple[str, bool, bool]
"""(text, whether it is learned, whether the tokenizer adds its special tokens)."""
_TOKENIZE_AT_ONCE = 1024


@dataclass(frozen=True, slots=True)
class Example:
    """One sequence and what of it is learned."""

    tokens: Tensor
    """int64 [T]."""
    learned: Tensor
    """bool [T]: the tokens whose log-prob is in the loss; never the first."""

    @property
    def length(self) -> int:
        """Tokens."""
        return self.tokens.numel()

    @property
    def prompt_length(self) -> int:
        """Tokens before the first that is learned; all, where none is."""
        return int(self.learned.int().argmax()) if self.learned.any() else self.length


def configured_examples(
    config: DataConfig, path: str | Path, tokenizer: Any, limit: int | None = None
) -> Dataset[Example]:
    """The examples of a file in the run's columns; see `load_examples`."""
    return load_examples(
        path,
        tokenizer,
        max_length=config.max_prompt_length + config.max_response_length,
        prompt_key=config.prompt_column,
        response_key=config.response_column,
        messages_key=config.messages_column,
        apply_chat_template=config.apply_chat_template,
        limit=limit,
    )


def load_examples(
    path: str | Path,
    tokenizer: Any,
    *,
    max_length: int,
    prompt_key: str = "prompt",
    response_key: str = "response",
    messages_key: str | None = None,
    apply_chat_template: bool = False,
    limit: int | None = None,
) -> Dataset[Example]:
    """Reads a .jsonl or .parquet file.

    With messages_key, its column holds whole conversations (lists of {"role", "content"}), and all
    turns of the assistant are learned. Without, the response is learned after a prompt that is text
    or a list of messages; messages, and text with `apply_chat_template`, go through the tokenizer's
    chat template. A response that no template closes is closed by the end-of-text token. What a
    turn is tokenized to does not depend on what follows, as in a rollout. Rows of more than
    max_length tokens are left out and counted, never cut: an answer without its end teaches not to
    end. limit: reads only so many rows.

    DataError, with file and line, for a missing column, a conversation without the assistant, a
    template that refuses one, and where no row is left.
    """
    path, examples, lengths = Path(path), [], []
    make = _Segments(tokenizer, prompt_key, response_key, messages_key, apply_chat_template)
    rows = islice(read_rows(path), limit)
    while chunk := list(islice(rows, _TOKENIZE_AT_ONCE)):
        made = _tokenize([make(place, row) for place, row in chunk], tokenizer)
        for (place, _), example in zip(chunk, made, strict=True):
            if not example.learned.any():
                raise DataError(f"{place}: the answer is empty: there is nothing to learn")
            lengths.append(example.tokens.numel())
            if lengths[-1] <= max_length:
                examples.append(example)
    if not lengths:
        raise DataError(f"data set {path} is empty: it has no rows")
    if not examples:
        raise DataError(
            f"data set {path}: all {len(lengths)} examples are longer than {max_length} tokens "
            f"(max_prompt_length + max_response_length; the shortest has {min(lengths)}): raise "
            "them"
        )
    return Dataset(tuple(examples), len(lengths) - len(examples))


class _Segments:
    """Cuts the conversation of a row into texts that are given and texts that are learned."""

    def __init__(
        self,
        tokenizer: Any,
        prompt_key: str,
        response_key: str,
        messages_key: str | None,
        apply_chat_template: bool,
    ) -> None:
        self._talks = _Conversations(tokenizer, apply_chat_template)
        self._prompt, self._response, self._messages = prompt_key, response_key, messages_key

    def __call__(self, place: str, row: Row) -> list[Segment]:
        """The segments of the row at `place`."""
        if self._messages is not None:
            messages = _column(place, row, self._messages, "messages")
            return list(self._talks.turns(place, messages, first=0))
        prompt = _column(place, row, self._prompt, "prompt")
        answer = _column(place, row, self._response, "response")
        return self._talks.answer(place, prompt, answer, self._response)


class _Conversations:
    """Writes prompts and answers as a tokenizer's texts."""

    def __init__(self, tokenizer: Any, apply_chat_template: bool) -> None:
        self._tokenizer, self._wrap = tokenizer, apply_chat_template
        self._end = tokenizer.eos_token or ""

    def answer(self, place: str, prompt: Any, answer: Any, name: str) -> list[Segment]:
        """Prompt (text or messages) and answer, two segments; name: the answer's column."""
        if isinstance(answer, bool) or not isinstance(answer, str | int | float):
            raise DataError(f"{place}: column {name!r} holds {answer!r}, which is no text")
        if isinstance(prompt, str):
            if not self._wrap:
                return [(prompt, False, True), (f"{answer}{self._end}", True, False)]
            prompt = [{"role": "user", "content": prompt}]
        messages = [*_checked(place, prompt), {"role": "assistant", "content": str(answer)}]
        return list(self.turns(place, messages, first=len(messages) - 1))

    def turns(self, place: str, messages: Any, first: int) -> Iterator[Segment]:
        """Segments up to the assistant's last turn, of which those from `first` on are learned."""
        messages = _checked(place, messages)
        turns = [
            index for index in range(first, len(messages)) if messages[index]["role"] == "assistant"
        ]
        if not turns:
            raise DataError(f"{place}: no message of the assistant, so that nothing is learned")
        done = ""
        for turn in turns:
            head = chat_text(self._tokenizer, messages[:turn], place)
            whole = chat_text(self._tokenizer, messages[: turn + 1], place, generation=False)
            if not (head.startswith(done) and whole.startswith(head)):
                raise DataError(
                    f"{place}: the chat template writes message {turn} differently when later "
                    "ones follow: give one answer a row, in prompt and response columns"
                )
            yield head[len(done) :], False, False
            yield whole[len(head) :], True, False
            done = whole


def _column(place: str, row: Row, name: str, setting: str) -> Any:
    value = lookup(row, name)
    if value is MISSING:
        names = ", ".join(column_names(row)) or "none"
        raise DataError(
            f"{place}: there is no column {name!r}; the columns are: {names} "
            f"(data.{setting}_column names one)"
        )
    return value


def _checked(place: str, messages: Any) -> list[Mapping[str, Any]]:
    if not isinstance(messages, list) or not messages or not all(map(is_message, messages)):
        raise DataError(
            f'{place}: no list of chat messages {{"role": ..., "content": ...}}: '
            f"{str(messages)[:80]!r}"
        )
    return messages


def _tokenize(rows: Sequence[Sequence[Segment]], tokenizer: Tokenizer) -> Iterator[Example]:
    """The examples of some rows."""
    for row, ids in zip(rows, _tokenize_segments(rows, tokenizer), strict=True):
        tokens = [token for own in ids for token in own]
        learned = [
            is_learned for (_, is_learned, _), own in zip(row, ids, strict=True) for _ in own
        ]
        learned[:1] = [False] * len(learned[:1])  # nothing predicts the first token
        yield Example(torch.tensor(tokens, dtype=torch.int64), torch.tensor(learned))


def _tokenize_segments(
    rows: Sequence[Sequence[Segment]], tokenizer: Tokenizer
) -> list[list[list[int]]]:
    """Token ids of each segment of each row, each tokenized by itself."""
    flat = [segment for row in rows for segment in row]
    ids: dict[int, list[int]] = {}
    for special in (False, True):
        index = [i for i, segment in enumerate(flat) if segment[2] is special and segment[0]]
        texts = [flat[i][0] for i in index]
        found = tokenizer(texts, add_special_tokens=special)["input_ids"] if texts else []
        ids |= dict(zip(index, found, strict=True))
    number = iter(range(len(flat)))
    return [[ids.get(next(number), []) for _ in row] for row in rows]

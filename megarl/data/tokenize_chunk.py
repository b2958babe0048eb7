"""One chunk of a corpus to token ids; runs in worker processes."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megarl.data.chunks import Chunk
from megarl.errors import ConfigError, DataError
from megarl.runtime.environment import set_variables
from megarl.runtime.spawn import die_with_parent

SMALL_VOCABULARY = 65500
"""Megatron-Core's: token ids of a smaller one are stored in 16 bits."""


@dataclass(frozen=True, slots=True)
class Documents:
    """The documents of one column of a chunk."""

    tokens: NDArray[Any]
    """[T], one document after the other."""
    lengths: list[int]
    """Tokens of each document, at least 1."""
    num_empty: int
    """Texts without a token, which are left out."""


class ChunkTokenizer:
    """A Hugging Face tokenizer for whole documents."""

    def __init__(self, folder: str, columns: Sequence[str], append_eod: bool) -> None:
        """ConfigError where there is no tokenizer, or none that can end a document."""
        if not Path(folder).is_dir():
            raise ConfigError(
                f"--tokenizer {folder}: there is no such folder; give a Hugging Face folder with "
                "tokenizer.json and tokenizer_config.json (names of hub models are not looked up)"
            )
        # Processes are the parallelism here: threads of their own would only be in their way.
        set_variables({"TOKENIZERS_PARALLELISM": "false"})
        from transformers import AutoTokenizer

        try:
            self._tokenizer = AutoTokenizer.from_pretrained(folder)
            self.vocab_size = max(self._tokenizer.get_vocab().values(), default=-1) + 1
        except Exception as error:  # Its files are read by many readers, each with its own errors.
            cause = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ConfigError(
                f"--tokenizer {folder}: no tokenizer can be read: {cause}; give a Hugging Face "
                "folder with tokenizer.json and tokenizer_config.json"
            ) from None
        self._columns = tuple(columns)
        self._end: list[int] = []
        if append_eod:
            if self._tokenizer.eos_token_id is None:
                raise ConfigError(
                    f"--append-eod: the tokenizer in {folder} has no eos_token: name one in its "
                    "tokenizer_config.json, or leave the option out"
                )
            self._end = [int(self._tokenizer.eos_token_id)]
        self.dtype: type[np.uint16] | type[np.int32] = (
            np.uint16 if self.vocab_size < SMALL_VOCABULARY else np.int32
        )

    def documents(self, chunk: Chunk) -> list[Documents]:
        """What is in the chunk, column by column; DataError as `Chunk.texts`."""
        rows = list(chunk.texts(self._columns))
        return [self._tokenize([row[i] for row in rows]) for i in range(len(self._columns))]

    def _tokenize(self, texts: list[str]) -> Documents:
        # A tokenizer refuses an empty list.
        ids = self._tokenizer(texts, verbose=False)["input_ids"] if texts else []
        found = [one + self._end for one in ids if one]
        lengths = [len(one) for one in found]
        tokens = np.fromiter(chain.from_iterable(found), self.dtype, sum(lengths))
        return Documents(tokens, lengths, len(texts) - len(found))


_tokenizer: ChunkTokenizer | None = None
"""Of this worker process."""


def begin_worker(folder: str, columns: Sequence[str], append_eod: bool) -> None:
    """Make a worker process ready."""
    global _tokenizer
    die_with_parent()
    # Ctrl-C is the parent's to answer.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _tokenizer = ChunkTokenizer(folder, columns, append_eod)


def work(chunk: Chunk) -> list[Documents] | DataError:
    """`ChunkTokenizer.documents`; the error is returned, so that it travels without its trace."""
    assert _tokenizer is not None
    try:
        return _tokenizer.documents(chunk)
    except DataError as error:
        return error

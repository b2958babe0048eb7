"""Which indexed data sets are read, in what shares, and which documents of them for what."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megarl.data.index_file import IndexFile, read_index
from megarl.errors import ConfigError, DataError

PARTS = ("training", "evaluation")


@dataclass(frozen=True, slots=True)
class Blend:
    """Data sets and their shares of the samples."""

    prefixes: tuple[str, ...]
    weights: tuple[float, ...] | None
    """None: in proportion to the tokens of their training parts."""


def parse_blend(entries: Sequence[Any]) -> Blend:
    """data.indexed.blend: prefixes, or [weight, prefix] each; ConfigError for anything else."""
    if not entries:
        raise ConfigError("data.indexed.blend is empty: give prefixes, or [weight, prefix] each")
    if all(isinstance(entry, str) for entry in entries):
        return Blend(tuple(_prefix(entry) for entry in entries), None)
    for entry in entries:
        pair = isinstance(entry, list | tuple) and len(entry) == 2
        if not pair or not isinstance(entry[1], str):
            raise ConfigError(
                f"data.indexed.blend: {entry!r} is no [weight, prefix]: give a weight with every "
                "prefix, or with none"
            )
        weight = entry[0]
        number = isinstance(weight, int | float) and not isinstance(weight, bool)
        if not number or not math.isfinite(weight) or weight <= 0:
            raise ConfigError(
                f"data.indexed.blend: the weight of {entry[1]} is {weight!r}: give a number above "
                "0, or leave the data set out"
            )
    return Blend(
        tuple(_prefix(prefix) for _, prefix in entries),
        tuple(float(weight) for weight, _ in entries),
    )


def parse_split(split: str) -> tuple[float, float, float]:
    """data.indexed.split, "99,1,0", as shares of the documents that add up to 1."""
    try:
        numbers = [float(part) for part in split.split(",")]
    except ValueError:
        numbers = []
    usable = all(math.isfinite(number) and number >= 0 for number in numbers)
    if not usable or not 1 <= len(numbers) <= 3 or numbers[0] == 0:
        raise ConfigError(
            f"data.indexed.split is {split!r}: give the shares of documents for training, "
            "evaluation and neither, such as 99,1,0; the first above 0"
        )
    train, held, rest = (number / sum(numbers) for number in [*numbers, 0.0, 0.0][:3])
    return train, held, rest


def document_ranges(split: str, num_documents: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Documents [begin, end) for training and for evaluation, rounded as Megatron-Core does."""
    train, held, _ = parse_split(split)
    middle = round(train * num_documents)
    return (0, middle), (middle, round((train + held) * num_documents))


def wants_evaluation(split: str, eval_interval: int) -> bool:
    """Whether held-out samples are read: where the split leaves some, or evaluations are asked for.

    eval_interval: steps; 0: only before the first and after the last.
    """
    return eval_interval > 0 or parse_split(split)[1] > 0


def check_corpora(blend: Blend, split: str, seq_length: int, want_eval: bool) -> list[IndexFile]:
    """The indices of the data sets; DataError or ConfigError where one cannot be read as asked."""
    if want_eval and parse_split(split)[1] == 0:
        raise ConfigError(
            f"data.indexed.split is {split!r}, which leaves no documents for evaluation: give it a "
            "second number above 0, such as 99,1,0, or set run.eval_interval=0"
        )
    found = []
    for prefix in blend.prefixes:
        try:
            index = read_index(prefix)
        except DataError as error:
            raise DataError(f"data.indexed.blend: {error}") from None
        ranges = document_ranges(split, index.num_documents)
        for part, (begin, end) in list(zip(PARTS, ranges, strict=True))[: 1 + want_eval]:
            tokens = index.tokens_in(begin, end)
            if tokens <= seq_length:
                raise ConfigError(
                    f"data.indexed.blend: {prefix} has {tokens} tokens for {part} (documents "
                    f"{begin} to {end} of {index.num_documents}, by data.indexed.split {split!r}), "
                    f"less than one sample of data.indexed.seq_length {seq_length} + 1: lower "
                    "seq_length, change split, or add texts"
                )
        found.append(index)
    return found


def weights_of(blend: Blend, split: str, corpora: Sequence[IndexFile]) -> tuple[float, ...] | None:
    """The weights for Megatron-Core; None where there is one data set alone."""
    if len(corpora) == 1:
        return None
    if blend.weights is not None:
        return blend.weights
    ranges = [document_ranges(split, one.num_documents)[0] for one in corpora]
    return tuple(
        float(one.tokens_in(*training)) for one, training in zip(corpora, ranges, strict=True)
    )


def _prefix(text: str) -> str:
    # Absolute, so that the same data set has the same name whatever folder a run starts in.
    return str(Path(text).expanduser().absolute())

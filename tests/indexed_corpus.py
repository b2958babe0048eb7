"""Indexed data sets of a few kilobytes, made with Megatron-Core's own builder."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np


def write_corpus(prefix: Path, documents: Sequence[Sequence[int]], dtype: Any = np.int32) -> str:
    """Write the documents, one sequence each; returns the prefix."""
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    prefix.parent.mkdir(parents=True, exist_ok=True)
    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=dtype)
    for document in documents:
        builder.add_document(np.array(document), [len(document)])
    builder.finalize(f"{prefix}.idx")
    return str(prefix)


def read_corpus(prefix: Path | str) -> list[list[int]]:
    """The documents, read with Megatron-Core's own reader."""
    from megatron.core.datasets.indexed_dataset import IndexedDataset

    found = IndexedDataset(str(prefix))
    return [found[i].tolist() for i in range(len(found))]


def numbered_documents(count: int, seed: int, first: int = 0) -> list[list[int]]:
    """Documents of 1 to 40 tokens, in which no token stands twice: a token says where it is from.

    Tokens count up through the documents from `first`.
    """
    drawn = random.Random(seed)
    documents = []
    for length in (drawn.randint(1, 40) for _ in range(count)):
        documents.append(list(range(first, first + length)))
        first += length
    return documents

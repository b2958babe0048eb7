"""The order of samples, built by Megatron-Core's builder: once per node, whole or not at all.

Megatron-Core's builder has rank 0 of the default group write its index files while the other ranks
wait in barriers. A rank 0 that fails in between leaves them waiting, a node with a disk of its own
finds no files, and a start that was killed leaves some of them. So the builder runs here as if its
process were alone: a node's first rank builds into a folder aside, which gets its name when it is
whole; then all ranks load it.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import megatron.core
from megatron.core.datasets import blended_dataset, blended_megatron_dataset_builder, gpt_dataset
from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig

from megarl.data.index_helpers import ensure_helpers
from megarl.runtime.aside import check_writable, sync_tree, work_folder

_SURPLUSES = (0.005, 0.05, 0.5)
"""Shares of samples that each data set of a blend makes beyond its own; Megatron-Core's first."""
_FACTS = "facts.json"
_NO_TOKEN = -2
"""-1 is Megatron-Core's padding."""


@dataclass(frozen=True, slots=True)
class Order:
    """What decides the order of samples."""

    prefixes: tuple[str, ...]
    weights: tuple[float, ...] | None
    split: str
    seq_length: int
    seed: int
    num_samples: tuple[int, int]
    """For training, for evaluation."""

    def folder_name(self) -> str:
        """A name for this order over the data sets as they are now."""
        files = [os.stat(f"{prefix}{end}") for prefix in self.prefixes for end in (".idx", ".bin")]
        states = [(file.st_size, file.st_mtime_ns) for file in files]
        content = json.dumps([asdict(self), states, megatron.core.__version__])
        return hashlib.blake2b(content.encode(), digest_size=12).hexdigest()


@dataclass(frozen=True, slots=True)
class Loaded:
    """Megatron-Core's data sets."""

    train: Any
    eval: Any | None
    digest: str
    """Of the order itself."""


class _Tokenizer:
    """What Megatron-Core asks a tokenizer for when texts are tokens already."""

    vocab_size = None

    def __init__(self, eod: int) -> None:
        self.eod = eod
        # The order of samples does not depend on a tokenizer.
        self.unique_identifiers: dict[str, Any] = {}


def make_cache(cache: Path, order: Order) -> None:
    """Build the order into `cache`, unless it is there."""
    folder = cache / order.folder_name()
    if folder.exists():
        return
    check_writable(folder, f"data.indexed.cache_dir {cache}", "name another folder")
    ensure_helpers()
    aside = cache / f"{folder.name}.{socket.gethostname()}.partial"
    with work_folder(aside, wait_s=math.inf) as partial:
        if folder.exists():  # somebody else on this machine was building it
            return
        datasets, surplus = _build(order, partial)
        facts = {"surplus": surplus, "digest": _digest(datasets[0])}
        (partial / _FACTS).write_text(json.dumps(facts))
        sync_tree(partial)
        try:
            os.rename(partial, folder)
        except OSError:
            if not folder.exists():  # or another node came first, with the same files
                raise


def load_cache(cache: Path, order: Order, *, eod: int | None, eod_mask_loss: bool) -> Loaded:
    """The data sets, with the order that `make_cache` made."""
    folder = cache / order.folder_name()
    facts = json.loads((folder / _FACTS).read_text())
    end = _NO_TOKEN if eod is None else eod
    config = _config(order, folder, facts["surplus"], eod=end, eod_mask_loss=eod_mask_loss)
    with _alone(first=False):
        train, held, _ = _builder(order, config).build()
    return Loaded(train, held, facts["digest"])


def _build(order: Order, folder: Path) -> tuple[list[Any], float]:
    """(data sets, the surplus that was enough)."""
    # A blend has up to a sample more per data set than was asked for, and draws them where they
    # are due: in small ones by far more than half a percent. The last is enough for all.
    for surplus in (*_SURPLUSES, 1.0 + len(order.prefixes)):
        with _alone(first=True), suppress(IndexError), _plain_os_errors():
            return _builder(order, _config(order, folder, surplus)).build(), surplus
    raise AssertionError(f"a blend that draws more than it can: {order}")


@contextmanager
def _plain_os_errors() -> Iterator[None]:
    """What Megatron-Core wraps into a bare Exception that blames the folder, whatever it was."""
    try:
        yield
    except Exception as error:
        if isinstance(error.__cause__, OSError):
            raise error.__cause__ from None
        raise


def _builder(order: Order, config: GPTDatasetConfig) -> Any:
    return BlendedMegatronDatasetBuilder(GPTDataset, [*order.num_samples, 0], lambda: True, config)


def _config(
    order: Order, folder: Path, surplus: float, *, eod: int = _NO_TOKEN, eod_mask_loss: bool = False
) -> GPTDatasetConfig:
    config = GPTDatasetConfig(
        random_seed=order.seed,
        sequence_length=order.seq_length,
        blend=(list(order.prefixes), order.weights and list(order.weights)),
        split=order.split,
        path_to_cache=str(folder),
        tokenizer=_Tokenizer(eod),
        mid_level_dataset_surplus=surplus,
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=eod_mask_loss,
        create_attention_mask=False,
    )
    train, held, _ = config.split_matrix
    config.split_matrix = [train, held if order.num_samples[1] else None, None]
    return config


def _digest(dataset: Any) -> str:
    """Of every index that says which tokens a position has; the number of samples is not in it."""
    found = hashlib.blake2b(digest_size=16)
    parts: Sequence[Any] = getattr(dataset, "datasets", [dataset])
    found.update(json.dumps(list(getattr(dataset, "weights", [])), default=float).encode())
    for part in parts:
        for index in (part.document_index, part.sample_index, part.shuffle_index):
            found.update(f"{index.dtype}{index.shape}".encode())
            found.update(memoryview(index).cast("B"))
        found.update(memoryview(part.dataset.sequence_lengths).cast("B"))
    return found.hexdigest()


@contextmanager
def _alone(*, first: bool) -> Iterator[None]:
    """Megatron-Core's data sets see a group whose rank this is: 0, which writes, or another."""
    rank = 0 if first else 1
    group = SimpleNamespace(
        is_initialized=lambda: True, get_rank=lambda: rank, barrier=lambda: None
    )
    modules = (gpt_dataset, blended_dataset, blended_megatron_dataset_builder)
    before = [module.torch for module in modules]
    try:
        for module, torch in zip(modules, before, strict=True):
            module.torch = _Torch(torch, group)
        yield
    finally:
        for module, torch in zip(modules, before, strict=True):
            module.torch = torch


class _Torch:
    """torch, but for its distributed package."""

    def __init__(self, torch: Any, distributed: Any) -> None:
        self._torch, self.distributed = torch, distributed

    def __getattr__(self, name: str) -> Any:
        return getattr(self._torch, name)

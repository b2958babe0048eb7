"""Pretraining samples from Megatron's indexed data sets, the same on every rank and layout."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, overload

import torch
from torch import Tensor

from megarl.config.schema import IndexedDataConfig
from megarl.data.blend import Blend, check_corpora, parse_blend, weights_of
from megarl.errors import ConfigError, DataError, MegaRLError, RunError
from megarl.mesh.group import RankGroup

if TYPE_CHECKING:
    from megarl.data.index_cache import Loaded, Order

T = TypeVar("T")


class IndexedSample:
    """A window of documents that are strung together; it is read when its tokens are asked for."""

    prompt_length = 1
    """What is never learned: the first token, which nothing predicts."""

    def __init__(self, samples: IndexedSamples, position: int) -> None:
        self._samples, self._position = samples, position

    @property
    def length(self) -> int:
        """Tokens: data.indexed.seq_length + 1."""
        return self._samples.seq_length + 1

    @property
    def tokens(self) -> Tensor:
        """int64 [length]; DataError for a token that the model does not have."""
        return self._found.tokens

    @property
    def learned(self) -> Tensor:
        """bool [length]: the tokens whose log-prob is in the loss."""
        return self._found.learned

    @property
    def corpus(self) -> int:
        """Its number in data.indexed.blend."""
        return self._found.corpus

    @cached_property
    def _found(self) -> _Window:
        return self._samples.read(self._position)


class _Window(NamedTuple):
    tokens: Tensor
    learned: Tensor
    corpus: int


class IndexedSamples(Sequence[IndexedSample]):
    """As many samples as were asked for, in Megatron-Core's shuffled order.

    What stands at a position depends on data sets, weights, split, seq_length and seed; on the
    number of samples only where that changes the number of epochs, since Megatron-Core shuffles
    all but the last together. `IndexedData.digest` tells whether it did.
    """

    def __init__(
        self,
        dataset: Any,
        num_samples: int,
        seq_length: int,
        prefixes: Sequence[str],
        vocab_size: int,
    ) -> None:
        self._dataset, self._num_samples, self.seq_length = dataset, num_samples, seq_length
        self._prefixes, self._vocab_size = tuple(prefixes), vocab_size

    def __len__(self) -> int:
        return self._num_samples

    @overload
    def __getitem__(self, index: int) -> IndexedSample: ...
    @overload
    def __getitem__(self, index: slice) -> list[IndexedSample]: ...
    def __getitem__(self, index: int | slice) -> IndexedSample | list[IndexedSample]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self._num_samples))]
        position = index + self._num_samples if index < 0 else index
        if not 0 <= position < self._num_samples:
            raise IndexError(f"sample {index} of {self._num_samples}")
        return IndexedSample(self, position)

    def read(self, position: int) -> _Window:
        """What stands there."""
        found = self._dataset[position]
        tokens = torch.cat((found["tokens"], found["labels"][-1:]))
        corpus = int(found.get("dataset_id", 0))
        if int(tokens.max()) >= self._vocab_size:
            raise DataError(
                f"sample {position} holds token {int(tokens.max())}, from {self._prefixes[corpus]},"
                f" and the model has {self._vocab_size}: its texts went through another tokenizer"
            )
        learned = torch.cat((torch.tensor([False]), found["loss_mask"].bool()))
        return _Window(tokens, learned, corpus)


@dataclass(frozen=True, slots=True)
class IndexedData:
    """What pretraining reads."""

    train: IndexedSamples
    eval: IndexedSamples | None
    """None where no samples were asked for."""
    digest: str
    """Of the training order: a run that goes on must find the one that it had."""

    def check_same_order(self, saved: str) -> None:
        """ConfigError unless the training order is the one with this digest."""
        if saved != self.digest:
            raise ConfigError(
                f"cannot resume the data order: it was {saved} in the checkpoint and is "
                f"{self.digest} now; the data sets, their weights, data.indexed.split, seq_length "
                "or run.seed differ, or run.steps asks for another number of epochs over a data "
                "set: give the same, or start anew with checkpoint.resume_mode=never"
            )


class IndexedOrder:
    """Deals training samples as they stand, `batch_size` a step."""

    def __init__(self, data: IndexedData, batch_size: int) -> None:
        self._data, self._batch_size, self._position = data, batch_size, 0

    def next(self) -> list[int]:
        """The next batch."""
        start, self._position = self._position, self._position + self._batch_size
        return list(range(start, self._position))

    def state_dict(self) -> dict[str, Any]:
        """Where it stands, and in what."""
        return {"position": self._position, "digest": self._data.digest}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on there; see `IndexedData.check_same_order`."""
        self._data.check_same_order(state["digest"])
        self._position = int(state["position"])


def open_indexed(
    config: IndexedDataConfig,
    *,
    num_train_samples: int,
    num_eval_samples: int,
    seed: int,
    vocab_size: int,
    eod: int | None,
    run_dir: str | Path,
    group: RankGroup | None = None,
) -> IndexedData:
    """Open the corpora; every rank of `group` calls it, in a process ready for Megatron-Core.

    num_eval_samples 0: no evaluation. eod: the tokenizer's eos_token_id, for eod_mask_loss.
    run_dir: where the cache lies without config.cache_dir. group None: this process is alone.

    ConfigError or DataError for settings and files that cannot be used. What fails on one rank
    fails on all of them, with that rank's cause.
    """
    if config.eod_mask_loss and eod is None:
        raise ConfigError("data.indexed.eod_mask_loss: the tokenizer has no eos_token")
    if num_train_samples < 1:
        raise ConfigError(f"{num_train_samples} training samples are asked for: at least 1")
    blend = parse_blend(config.blend)
    cache = Path(config.cache_dir or Path(run_dir) / "index_cache").expanduser().absolute()
    sizes = (num_train_samples, num_eval_samples)
    order = _on_all(group, lambda: _order(config, blend, sizes, seed))

    def make() -> None:
        from megarl.data.index_cache import make_cache

        make_cache(cache, order)

    def load() -> Loaded:
        from megarl.data.index_cache import load_cache

        return load_cache(cache, order, eod=eod, eod_mask_loss=config.eod_mask_loss)

    rank, node_of = (group.rank, group.node_of) if group else (0, (0,))
    _on_all(group, make if rank == 0 else _nothing)
    # Where the folder is each node's own, the other nodes have none yet.
    leads = rank == node_of.index(node_of[rank])
    _on_all(group, make if leads and rank else _nothing)
    found = _on_all(group, load)
    digests = group.all_gather(found.digest) if group else [found.digest]
    if len(set(digests)) > 1:
        raise RunError(f"data.indexed.blend: the data sets differ between ranks: {digests}")
    facts = config.seq_length, blend.prefixes, vocab_size
    train = IndexedSamples(found.train, num_train_samples, *facts)
    held = None
    if found.eval is not None:
        held = IndexedSamples(found.eval, num_eval_samples, *facts)
    return IndexedData(train, held, found.digest)


def _order(config: IndexedDataConfig, blend: Blend, sizes: tuple[int, int], seed: int) -> Order:
    # Megatron-Core may be imported only now: the process is prepared.
    from megarl.data.index_cache import Order

    corpora = check_corpora(blend, config.split, config.seq_length, sizes[1] > 0)
    weights = weights_of(blend, config.split, corpora)
    return Order(blend.prefixes, weights, config.split, config.seq_length, seed, sizes)


def _on_all(group: RankGroup | None, work: Callable[[], T]) -> T:
    """What `work` returns here; what fails on one rank is raised on all, so that none waits."""
    failure: MegaRLError | None = None
    try:
        value = work()
    except MegaRLError as error:
        failure = error
    except Exception as error:  # Whatever it is, the other ranks must hear of it.
        failure = RunError(f"opening data.indexed failed: {type(error).__name__}: {error}")
        failure.__cause__ = error
    if group is None:
        if failure is not None:
            raise failure
        return value
    failures = group.all_gather(failure)
    for rank, found in enumerate(failures):
        if found is not None:
            raise type(found)(f"rank {rank}: {found}") from failure
    return value


def _nothing() -> None: ...

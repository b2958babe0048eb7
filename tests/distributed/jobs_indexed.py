"""Jobs about indexed data sets: every rank opens them and says what it reads."""

from __future__ import annotations

from typing import Any

from worker import Rank

from megarl.config.schema import IndexedDataConfig
from megarl.data.indexed import open_indexed
from megarl.errors import MegaRLError

COUNT = 40


def read(
    rank: Rank, blends: list[list[Any]], folders: list[str], nodes: tuple[int, ...] | None = None
) -> tuple[str, list[list[int]]] | str:
    """(digest, samples), or what went wrong; blends, folders and nodes are by rank."""
    group = rank.universe
    if nodes is not None:
        group.node_of = nodes
    settings = IndexedDataConfig(
        blend=blends[rank.rank], seq_length=16, split="9,1,0", cache_dir=folders[rank.rank]
    )
    try:
        data = open_indexed(
            settings, num_train_samples=COUNT, num_eval_samples=4, seed=1, vocab_size=1 << 20,
            eod=None, run_dir="nowhere", group=group,
        )  # fmt: skip
    except MegaRLError as error:
        return f"{type(error).__name__}: {error}"
    assert data.eval is not None
    return data.digest, [
        sample.tokens.tolist() for part in (data.train, data.eval) for sample in part
    ]


def read_with_failure(
    rank: Rank, broken: int, name: str, blend: list[Any], folder: str
) -> tuple[str, list[list[int]]] | str:
    """As `read`, where a function of the cache raises something unforeseen on one rank."""
    from megarl.data import index_cache

    real = getattr(index_cache, name)

    def fail(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("the disk caught fire")

    try:
        if rank.rank == broken:
            setattr(index_cache, name, fail)
        return read(rank, [blend] * rank.universe.size, [folder] * rank.universe.size)
    finally:
        setattr(index_cache, name, real)

"""Syncs with one thing left out or spoilt: each must be noticed."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any
from unittest import mock

import torch
from jobs_sync import Stage, generate_some, train_step
from torch import Tensor
from worker import Rank

from megarl.errors import RunError
from megarl.reshard import executor
from megarl.reshard.regions import RegionSet


def sabotaged_sync(rank: Rank, name: str) -> str:
    """A small optimizer step and a sync with one thing left out; what it raised, "" for nothing."""
    stage: Stage = rank.kept["stage"]
    generate_some(rank)
    train_step(rank)
    with SABOTAGE[name](rank, stage):
        try:
            stage.sync.run()
        except RunError as error:
            return f"{type(error).__name__}: {error}"
    return ""


@contextmanager
def _skip_movement(rank: Rank, stage: Stage) -> Iterator[None]:
    def copy_nothing(
        source: RegionSet, target: Any, wire: torch.dtype, digests: Tensor | None, scratch: Tensor
    ) -> None:
        assert digests is not None
        source.digest(wire, digests)

    with (
        mock.patch.object(RegionSet, "unpack", lambda self, buffer: None),
        mock.patch.object(executor, "copy_regions", copy_nothing),
    ):
        yield


@contextmanager
def _unpack_on_last_rank(
    rank: Rank, sabotage: Callable[[RegionSet, Tensor], None]
) -> Iterator[None]:
    last = rank.rank == rank.universe.size - 1
    with mock.patch.object(RegionSet, "unpack", sabotage) if last else nullcontext():
        yield


@contextmanager
def _corrupt_one_element(rank: Rank, stage: Stage) -> Iterator[None]:
    """The last bit of one number, on the last rank only."""
    unpack, done = RegionSet.unpack, []

    def corrupting(self: RegionSet, buffer: Tensor) -> None:
        unpack(self, buffer)
        if not done:
            done.append(True)
            self._keep[0].view(torch.int16).view(-1)[0] ^= 1

    with _unpack_on_last_rank(rank, corrupting):
        yield


@contextmanager
def _swap_two_boxes(rank: Rank, stage: Stage) -> Iterator[None]:
    """Two boxes of one size land in each other's place, on the last rank only."""
    unpack, done = RegionSet.unpack, []

    def misplacing(self: RegionSet, buffer: Tensor) -> None:
        arrived = [
            buffer[offset : offset + size]
            for group in self._groups
            for offset, size in zip(group.table.rows[:, 11], group.table.numels, strict=True)
        ]
        for one, other in itertools.combinations([] if done else arrived, 2):
            if one.shape == other.shape and not torch.equal(one, other):
                kept = one.clone()
                one.copy_(other)
                other.copy_(kept)
                done.append(True)
                break
        unpack(self, buffer)

    with _unpack_on_last_rank(rank, misplacing):
        yield
    assert done or rank.rank < rank.universe.size - 1


@contextmanager
def _keep_prefix_cache(rank: Rank, stage: Stage) -> Iterator[None]:
    with mock.patch.object(stage.rollout.engine._llm, "reset_prefix_cache", lambda: True):
        yield


@contextmanager
def _break_after_the_digests(rank: Rank, stage: Stage) -> Iterator[None]:
    """A commit that spoils a parameter: only the canary can see it."""
    engine, commit = stage.rollout.engine, stage.rollout.engine.commit

    def spoiling(version: int) -> None:
        engine._model.model.norm.weight.data.mul_(30)
        commit(version)

    with mock.patch.object(engine, "commit", spoiling):
        yield


def _skip_repack(which: str) -> Callable[[Rank, Stage], Any]:
    @contextmanager
    def skip(rank: Rank, stage: Stage) -> Iterator[None]:
        from vllm.model_executor.layers import utils

        model, dispatch = stage.rollout.engine._model, utils.dispatch_cpu_unquantized_gemm
        left_old = model.get_submodule(which)
        assert hasattr(left_old, "cpu_linear")

        def all_but_one(layer: torch.nn.Module, remove_weight: bool) -> None:
            if layer is not left_old:
                dispatch(layer, remove_weight=remove_weight)

        with mock.patch.object(utils, "dispatch_cpu_unquantized_gemm", all_but_one):
            yield

    return skip


SABOTAGE: dict[str, Callable[[Rank, Stage], Any]] = {
    "skipped sync": _skip_movement,
    "one wrong element": _corrupt_one_element,
    "one wrong box": _swap_two_boxes,
    "prefix cache left alone": _keep_prefix_cache,
    "spoilt after its digest": _break_after_the_digests,
    "packed layer left old": _skip_repack("model.layers.2.mlp.down_proj"),
    "tied head left old": _skip_repack("model.embed_tokens"),
}

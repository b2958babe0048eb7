"""Jobs about the executor alone: plain tensors on every rank, moved by a plan and counted."""

from __future__ import annotations

import math
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

import torch
from fake_gpu import fake_gpu
from torch import Tensor
from worker import Rank

from megarl import native
from megarl.errors import MegaRLError, PeerError
from megarl.layout import Placement
from megarl.reshard.executor import Resharder, SyncReport
from megarl.runtime.device import device
from megarl.weights.load import strided_view

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class World:
    """A whole job's placements; rank -> what it holds and needs, and its buffers."""

    tensors: Shapes
    sources: Mapping[int, Placement]
    source_shapes: Mapping[int, Shapes]
    destinations: Mapping[int, Placement]
    destination_shapes: Mapping[int, Shapes]
    nodes: Sequence[int]


@dataclass(frozen=True)
class Options:
    """How the executor is built."""

    buffer_bytes: int = 1 << 14
    overlap: bool = True
    source_dtype: str = "float32"
    wire_dtype: str = "float32"
    destination_dtype: str = "float32"
    alone_elements: int = 64
    fake_gpu: bool = False
    """On streams and NCCL calls that are played on the host."""


@dataclass(frozen=True)
class Facts:
    """What one rank saw."""

    wrong: list[str]
    """Pieces that are not bit for bit what they should be, or buffers with NaN left in them."""
    reports: list[SyncReport]
    error: str = ""
    group_calls: Sequence[int] = ()
    """Messages of each NCCL group call."""
    largest_made: int = 0
    """Bytes of the largest tensor that was made during a move."""


def reshard(rank: Rank, world: World, options: Options, times: int = 2) -> Facts:
    """Move everything `times` times onto poisoned buffers, with other weights each time."""
    with fake_gpu(rank.universe) if options.fake_gpu else nullcontext() as gpu:
        facts = _reshard(rank, world, options, times)
        return replace(facts, group_calls=tuple(gpu.group_calls) if gpu else ())


def _reshard(rank: Rank, world: World, options: Options, times: int) -> Facts:
    sources, destinations, resharder = _build(rank, world, options)
    wrong, reports, largest = [], [], 0
    empty = torch.empty

    def made(*args: Any, **kwargs: Any) -> torch.Tensor:
        nonlocal largest
        found = empty(*args, **kwargs)
        largest = max(largest, found.nbytes)
        return found

    for time in range(times):
        full = _full(world, time)
        _fill(sources, world.sources.get(rank.rank, ()), full)
        for buffer in destinations.values():
            buffer.fill_(math.nan)
        with mock.patch.object(torch, "empty", made):
            reports.append(resharder.run())
        wrong += _differences(rank, world, options, destinations, full)
    return Facts(wrong, reports, largest_made=largest)


def reshard_without(rank: Rank, world: World, options: Options, gone: int) -> None:
    """Rank `gone` is killed before the second move."""
    with fake_gpu(rank.universe) if options.fake_gpu else nullcontext():
        _reshard_without(rank, world, options, gone)


def _reshard_without(rank: Rank, world: World, options: Options, gone: int) -> None:
    sources, _, resharder = _build(rank, world, options)
    _fill(sources, world.sources.get(rank.rank, ()), _full(world, 0))
    resharder.run()
    if rank.rank == gone:
        os.kill(os.getpid(), signal.SIGKILL)
    try:
        resharder.run()
    except PeerError as error:
        sys.stdout.write(f"{error}\n")
        sys.stdout.flush()
        raise


def build_only(rank: Rank, world: World, options: Options) -> str:
    """What building says."""
    try:
        _build(rank, world, options)
    except MegaRLError as error:
        return f"{type(error).__name__}: {error}"
    return ""


def _build(rank: Rank, world: World, options: Options) -> tuple[Any, Any, Resharder]:
    rank.universe.node_of = tuple(world.nodes)
    plan = native.plan(
        world.sources,
        world.destinations,
        node_of=world.nodes.__getitem__,
        rank=rank.rank,
        grain=16,
    )
    sources = _buffers(world.source_shapes.get(rank.rank, {}), options.source_dtype)
    destinations = _buffers(world.destination_shapes.get(rank.rank, {}), options.destination_dtype)
    resharder = Resharder(
        rank.universe,
        plan,
        sources,
        destinations,
        wire_dtype=getattr(torch, options.wire_dtype),
        buffer_bytes=options.buffer_bytes,
        overlap=options.overlap,
        alone_elements=options.alone_elements,
    )
    return sources, destinations, resharder


def _buffers(shapes: Shapes, dtype: str) -> dict[str, Tensor]:
    return {
        name: torch.full(shape, math.nan, dtype=getattr(torch, dtype), device=device())
        for name, shape in shapes.items()
    }


def _full(world: World, time: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(time)
    return {name: torch.randn(dims, generator=generator) for name, dims in world.tensors.items()}


def _fill(buffers: dict[str, Tensor], placement: Placement, full: dict[str, Tensor]) -> None:
    for piece in placement:
        index = tuple(map(slice, piece.box.lo, piece.box.hi))
        strided_view(buffers[piece.buffer], piece).copy_(full[piece.tensor][index])


def _differences(
    rank: Rank,
    world: World,
    options: Options,
    destinations: dict[str, Tensor],
    full: dict[str, Tensor],
) -> list[str]:
    narrow = [getattr(torch, options.source_dtype), getattr(torch, options.wire_dtype)]
    wrong = []
    for piece in world.destinations.get(rank.rank, ()):
        expected = full[piece.tensor][tuple(map(slice, piece.box.lo, piece.box.hi))]
        for dtype in narrow:
            expected = expected.to(dtype)
        found = strided_view(destinations[piece.buffer], piece).cpu()
        if not torch.equal(found, expected.to(found.dtype)):
            wrong.append(f"{piece.tensor} {piece.box}")
    return wrong + [name for name, buffer in destinations.items() if buffer.isnan().any()]

"""Moves the regions of a message: pack, unpack, copy and digest over live tensors.

Regions of one type are one call of the mover; a message whose destinations mix types (an fp32
bias among bf16 weights) takes several.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from megarl import native
from megarl.errors import PlanError
from megarl.layout import Transfer
from megarl.reshard.mover import NAMES, Mover


class Group(NamedTuple):
    """The regions of one type."""

    dtype: native.DType
    rows: Tensor
    """int64: their places in the set."""
    table: native.RegionTable
    bound: Any
    """The table as the mover takes it."""


class RegionSet:
    """One side (source or destination) of a list of transfers, ready to be moved."""

    def __init__(
        self,
        transfers: Sequence[Transfer],
        sources: Mapping[str, Tensor],
        destinations: Mapping[str, Tensor],
        side: str,
        mover: Mover,
    ) -> None:
        """side: "src" or "dst"; the source of a relay is among the destinations."""
        self._mover = mover
        self._keep: list[Tensor] = []
        by_type: dict[torch.dtype, tuple[list[int], list[native.Region]]] = {}
        flat = 0
        for index, transfer in enumerate(transfers):
            tensors = sources if side == "src" and not transfer.relay else destinations
            tensor, region = _region(transfer, tensors, side, flat, mover.device)
            self._keep.append(tensor)
            rows, regions = by_type.setdefault(tensor.dtype, ([], []))
            rows.append(index)
            regions.append(region)
            flat += transfer.box.numel
        self.numel = flat
        self._groups = []
        for dtype, (rows, regions) in by_type.items():
            table = native.RegionTable(regions)
            places = torch.tensor(rows, device=mover.device)
            self._groups.append(Group(NAMES[dtype], places, table, mover.bind(table)))

    def pack(self, buffer: Tensor, digests: Tensor | None = None) -> None:
        """Regions -> contiguous buffer, cast to its type; int64 [number of transfers] digests."""
        for group in self._groups:
            with self._part(group, digests) as part:
                self._mover.pack(group.bound, buffer, group.dtype, part)

    def unpack(self, buffer: Tensor) -> None:
        """Contiguous buffer -> regions, cast to their types."""
        for group in self._groups:
            self._mover.unpack(group.bound, buffer, group.dtype)

    def digest(self, wire: torch.dtype, out: Tensor) -> None:
        """int64 [number of transfers]: each region's digest as it is in type `wire`."""
        for group in self._groups:
            with self._part(group, out) as part:
                assert part is not None
                self._mover.digest(group.bound, group.dtype, NAMES[wire], part)

    def direct(self, wire: torch.dtype) -> Tensor | None:
        """The memory of a single region that is contiguous and has the wire's type."""
        group = self._only_group(wire)
        if group is None or not group.table.is_one_run:
            return None
        start = int(group.table.rows[0, 2])
        return self._keep[0].detach().view(-1)[start : start + self.numel]

    def copy_to(self, target: RegionSet, wire: torch.dtype, digests: Tensor | None) -> bool:
        """Copy region by region where all targets have the wire's type; False where they do not."""
        mine, its = self._only_group(), target._only_group(wire)
        if mine is None or its is None:
            return False
        self._mover.copy(mine.bound, its.bound, mine.dtype, its.dtype, digests)
        return True

    def copies_to(self, target: RegionSet, wire: torch.dtype) -> bool:
        """Whether `copy_to` can."""
        return self._only_group() is not None and target._only_group(wire) is not None

    def _only_group(self, dtype: torch.dtype | None = None) -> Group | None:
        """The group of all regions, where they have one type (and it is `dtype`)."""
        if len(self._groups) != 1 or dtype is not None and self._groups[0].dtype != NAMES[dtype]:
            return None
        return self._groups[0]

    @contextmanager
    def _part(self, group: Group, digests: Tensor | None) -> Iterator[Tensor | None]:
        """A group's share of the digests, to be written."""
        if digests is None or len(self._groups) == 1:
            yield digests
            return
        part = torch.empty_like(group.rows)
        yield part
        digests.index_copy_(0, group.rows, part)


def copy_regions(
    source: RegionSet,
    target: RegionSet,
    wire: torch.dtype,
    digests: Tensor | None,
    scratch: Tensor,
) -> None:
    """Regions of the same sizes, one by one, as if over a wire; digests of the sources as `wire`.

    Directly where all targets have the wire's type; else through `scratch`, which holds them.
    """
    if not source.copy_to(target, wire, digests):
        buffer = scratch[: source.numel]
        source.pack(buffer, digests)
        target.unpack(buffer)


def _region(
    transfer: Transfer,
    tensors: Mapping[str, Tensor],
    side: str,
    flat: int,
    device: torch.device,
) -> tuple[Tensor, native.Region]:
    name = cast(str, getattr(transfer, f"{side}_buffer"))
    if name not in tensors:
        raise PlanError(f"the plan names {name}, which the live model does not have")
    tensor = tensors[name]
    if tensor.device != device:
        raise PlanError(
            f"{name} lies on {tensor.device}: this process moves weights that lie on {device}"
        )
    if not tensor.is_contiguous():
        raise PlanError(f"{name} is not contiguous, so the plan's strides do not hold")
    return tensor, native.Region(
        tensor.data_ptr(),
        tensor.numel(),
        getattr(transfer, f"{side}_offset"),
        getattr(transfer, f"{side}_strides"),
        transfer.box.shape,
        flat,
    )

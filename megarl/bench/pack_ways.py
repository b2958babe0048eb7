"""The ways that `megarl bench pack` compares: tables of regions, and what is done with them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from megarl.native import Region, RegionTable
from megarl.reshard.mover import NAMES, HostMover, Mover
from megarl.reshard.mover_cuda import CudaMover

PLAIN = "plain copy"
ROW = 4096
"""Elements of a row of the large regions, which lie in rows twice as long."""
LARGE_ROWS = 1024
SLICE_BYTES = 64 << 10
ODD = 16381
"""Elements of an odd region; none of its ends is aligned."""


@dataclass(frozen=True, slots=True)
class PackWay:
    """One way to move the bytes."""

    run: Callable[[], None]
    traffic_bytes: int
    """Read and written in one call."""


@dataclass(frozen=True, slots=True)
class _Case:
    """Regions of one buffer, and what they are packed as."""

    name: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    step: int
    """Elements from one region to the next."""
    offset: int = 0
    source: torch.dtype = torch.bfloat16
    wire: torch.dtype = torch.bfloat16

    @property
    def numel(self) -> int:
        """Of one region."""
        return torch.Size(self.shape).numel()


def all_ways(device: torch.device, threads: int, nbytes: int) -> dict[str, PackWay]:
    """Name -> way, in the order of the table; each packs about `nbytes`."""
    mover: Mover = HostMover(threads) if device.type == "cpu" else CudaMover(device)
    ways = dict(_plain(device, threads, nbytes))
    in_slice = SLICE_BYTES // 2
    large, wide = (LARGE_ROWS, ROW), (2 * ROW, 1)
    cases = (
        _Case("large regions", large, wide, 2 * ROW * LARGE_ROWS),
        _Case("64 KB slices", (in_slice,), (1,), 2 * in_slice),
        _Case("odd sizes", (ODD,), (1,), 2 * ODD + 1, offset=3),
        _Case("fp32 -> bf16", large, wide, 2 * ROW * LARGE_ROWS, source=torch.float32),
    )
    for case in cases:
        ways |= _moves(mover, case, nbytes)
    return ways


def _plain(device: torch.device, threads: int, nbytes: int) -> Iterator[tuple[str, PackWay]]:
    source = torch.ones(nbytes, dtype=torch.uint8, device=device)
    target = torch.zeros_like(source)

    def copy(count: int) -> None:
        before = torch.get_num_threads()
        torch.set_num_threads(count)
        target.copy_(source)
        torch.set_num_threads(before)

    yield PLAIN, PackWay(partial(copy, threads), 2 * nbytes)
    if threads > 1 and device.type == "cpu":
        yield f"{PLAIN}, one thread", PackWay(partial(copy, 1), 2 * nbytes)


def _moves(mover: Mover, case: _Case, nbytes: int) -> dict[str, PackWay]:
    """Pack, unpack, copy, and both with digests, of one table."""
    count = max(nbytes // (case.numel * case.wire.itemsize), 1)
    source, src_table = _regions(mover.device, case, count, case.source)
    target, dst_table = _regions(mover.device, case, count, case.wire)
    flat = torch.zeros(count * case.numel, dtype=case.wire, device=mover.device)
    digests = torch.zeros(count, dtype=torch.int64, device=mover.device)
    from_, to = mover.bind(src_table), mover.bind(dst_table)
    src, dst = NAMES[case.source], NAMES[case.wire]
    narrow, read = flat.nbytes, flat.numel() * case.source.itemsize

    def holding(run: Callable[[], None]) -> Callable[[], None]:
        """The calls take addresses: the tensors must live as long."""
        return partial(_keep, run, (source, target))

    found = {
        "pack": (lambda: mover.pack(from_, flat, src, None), read + narrow),
        "unpack": (lambda: mover.unpack(from_, flat, src), read + narrow),
        "copy": (lambda: mover.copy(from_, to, src, dst, None), read + narrow),
        "pack, digests": (lambda: mover.pack(from_, flat, src, digests), read + narrow),
        "digests alone": (lambda: mover.digest(from_, src, dst, digests), read),
    }
    return {
        f"{case.name}: {name}": PackWay(holding(run), traffic)
        for name, (run, traffic) in found.items()
    }


def _keep(run: Callable[[], None], _tensors: tuple[Tensor, ...]) -> None:
    run()


def _regions(
    device: torch.device, case: _Case, count: int, dtype: torch.dtype
) -> tuple[Tensor, RegionTable]:
    """A buffer and the case's regions in it, packed one behind the other."""
    numel = case.offset + count * case.step
    buffer = torch.ones(numel, dtype=dtype, device=device)
    return buffer, RegionTable(
        Region(
            buffer.data_ptr(),
            numel,
            case.offset + index * case.step,
            case.strides,
            case.shape,
            index * case.numel,
        )
        for index in range(count)
    )

"""The CUDA kernels against torch on the same device, and against the CPU kernels; needs a GPU."""

from __future__ import annotations

from math import prod
from typing import Any

import pytest
import torch

from megarl import native
from megarl.native import DeviceTable, DType, Queue, RegionTable

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not native.cuda_available(), reason="no GPU, or built without CUDA"),
]

TORCH: dict[DType, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "raw1": torch.uint8,
    "raw8": torch.int64,
}
PAIRS: list[tuple[DType, DType]] = [
    *((dtype, dtype) for dtype in TORCH),
    ("float32", "bfloat16"),
    ("bfloat16", "float32"),
]
NUMEL = 1 << 21
SHAPES: list[tuple[tuple[int, ...], tuple[int, ...], int]] = [
    ((64, 512), (1024, 1), 0),  # aligned rows
    ((64, 509), (1021, 1), 3),  # nothing aligned
    ((3, 5, 7, 9), (1000, 150, 20, 2), 1),
    ((40000,), (1,), 16),  # several tiles
    ((1,), (1,), 5),
    ((6, 5, 24, 32), (4000, 800, 32, 1), 8),  # three dims to carry over, aligned
    ((1 << 20,), (2,), 0),  # many tiles with gaps
]


class World:
    """One buffer with every shape in it, on both sides; flat offsets both aligned and odd."""

    def __init__(self, dtype: DType, device: str, seed: int = 1) -> None:
        generator = torch.Generator().manual_seed(seed)
        size = (NUMEL * native.ITEM_BYTES[dtype],)
        raw = torch.randint(0, 256, size, generator=generator, dtype=torch.uint8)
        self.buffer = raw.to(device).view(TORCH[dtype])
        self.flat_numel = 0
        regions = []
        for shape, strides, offset in SHAPES:
            flat = self.flat_numel
            regions.append((self.buffer.data_ptr(), NUMEL, offset, strides, shape, flat))
            self.flat_numel += prod(shape)
        self.table = RegionTable(regions)
        self.uploaded = torch.from_numpy(self.table.for_device()).to(device)

    @property
    def on_device(self) -> DeviceTable:
        return DeviceTable(self.table, self.uploaded.data_ptr())

    def views(self) -> list[torch.Tensor]:
        return [self.buffer.as_strided(*shape) for shape in SHAPES]


def queue() -> Queue:
    return Queue(torch.cuda.current_device(), torch.cuda.current_stream().cuda_stream)


def as_bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view(torch.uint8)


def cast(tensor: torch.Tensor, dtype: DType) -> torch.Tensor:
    """torch's cast on the device, with the NaN and the payloads that the kernels write."""
    if tensor.dtype == TORCH[dtype]:
        return tensor
    if dtype == "bfloat16":
        out = tensor.to(torch.bfloat16)
        out.view(torch.int16)[torch.isnan(tensor)] = 0x7FC0
        return out
    return (tensor.contiguous().view(torch.int16).to(torch.int32) << 16).view(torch.float32)


@pytest.mark.parametrize(("src", "dst"), PAIRS)
def test_pack_and_unpack(src: DType, dst: DType) -> None:
    world = World(src, "cuda")
    flat = torch.zeros(world.flat_numel, dtype=TORCH[dst], device="cuda")
    digests = torch.full((len(world.table),), 77, device="cuda")
    how: Any = {"src_dtype": src, "dst_dtype": dst, "queue": queue()}
    at = flat.data_ptr(), flat.nbytes
    native.cuda_pack(world.on_device, *at, digests_ptr=digests.data_ptr(), **how)
    expected = torch.cat([cast(view, dst).reshape(-1) for view in world.views()])
    assert torch.equal(as_bits(flat), as_bits(expected))
    host = World(src, "cpu")
    assert digests.tolist() == native.digest(host.table, dtype=src, as_dtype=dst).tolist()

    plain = torch.zeros_like(flat)
    native.cuda_pack(world.on_device, plain.data_ptr(), plain.nbytes, **how)
    assert torch.equal(as_bits(plain), as_bits(expected))

    target = World(src, "cuda", seed=2)
    right = target.buffer.clone()
    start = 0
    for shape in SHAPES:  # in order: they overlap
        view = right.as_strided(*shape)
        view.copy_(cast(flat[start : start + view.numel()], src).view(view.shape))
        start += view.numel()
    for one in range(len(SHAPES)):  # one launch writes regions in any order: one by one
        alone = RegionTable([(target.buffer.data_ptr(), NUMEL, *_region(one, world.table))])
        uploaded = torch.from_numpy(alone.for_device()).cuda()
        device_table = DeviceTable(alone, uploaded.data_ptr())
        native.cuda_unpack(device_table, *at, dtype=dst, dst_dtype=src, queue=queue())
        torch.cuda.synchronize()
    assert torch.equal(as_bits(target.buffer), as_bits(right))


def _region(index: int, table: RegionTable) -> tuple[Any, ...]:
    shape, strides, offset = SHAPES[index]
    return offset, strides, shape, int(table.rows[index, 11])


@pytest.mark.parametrize(("src", "dst"), PAIRS)
def test_copy_and_digest(src: DType, dst: DType) -> None:
    """Each region onto rows with a gap behind them."""
    world, host = World(src, "cuda"), World(src, "cpu")
    target = torch.zeros(2 * NUMEL, dtype=TORCH[dst], device="cuda")
    regions, offset = [], 0
    for shape, _, _ in SHAPES:
        width = shape[-1] + 8
        strides = tuple(prod(shape[d + 1 : -1]) * width for d in range(len(shape) - 1))
        regions.append((target.data_ptr(), target.numel(), offset, (*strides, 1), shape, 0))
        offset += prod(shape[:-1]) * width
    table = RegionTable(regions)
    uploaded = torch.from_numpy(table.for_device()).cuda()
    on_device = DeviceTable(table, uploaded.data_ptr())
    digests = torch.full((len(table),), 77, device="cuda")
    native.cuda_copy(
        world.on_device,
        on_device,
        src_dtype=src,
        dst_dtype=dst,
        queue=queue(),
        digests_ptr=digests.data_ptr(),
    )
    right = torch.zeros_like(target)
    for view, (_, _, at, strides, shape, _) in zip(world.views(), regions, strict=True):
        right.as_strided(shape, strides, at).copy_(cast(view, dst).view(shape))
    assert torch.equal(as_bits(target), as_bits(right))
    expected = native.digest(host.table, dtype=src, as_dtype=dst).tolist()
    assert digests.tolist() == expected
    for of, dtype in ((world.on_device, src), (on_device, dst)):
        digests.fill_(77)
        where = digests.data_ptr()
        native.cuda_digest(of, where, dtype=dtype, as_dtype=dst, queue=queue())
        assert digests.tolist() == expected


def test_on_the_given_stream() -> None:
    """The launch waits for what its stream waits for, and for nothing else."""
    world = World("float32", "cuda")
    flat = torch.zeros(world.flat_numel, device="cuda")
    expected = torch.cat([view.reshape(-1) for view in world.views()])
    other = torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(other):
        torch.cuda._sleep(200_000_000)
    native.cuda_pack(
        world.on_device,
        flat.data_ptr(),
        flat.nbytes,
        src_dtype="float32",
        dst_dtype="float32",
        queue=Queue(torch.cuda.current_device(), other.cuda_stream),
    )
    assert not other.query() and not flat.any()
    other.synchronize()
    assert torch.equal(as_bits(flat), as_bits(expected))

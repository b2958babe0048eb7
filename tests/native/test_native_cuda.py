"""The CUDA kernels against the CPU ones, on the same tables; they need a GPU."""

from __future__ import annotations

import pytest
import torch

from megarl import native
from megarl.native import DType, RegionTable

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not native.cuda_available(), reason="no GPU, or built without CUDA"),
]

PAIRS: list[tuple[DType, DType]] = [
    ("float32", "float32"),
    ("bfloat16", "bfloat16"),
    ("raw1", "raw1"),
    ("raw8", "raw8"),
    ("float32", "bfloat16"),
    ("bfloat16", "float32"),
]
SHAPES = [
    ((64, 512), (1024, 1), 0),  # aligned rows
    ((64, 509), (1021, 1), 3),  # nothing aligned
    ((3, 5, 7, 9), (1000, 150, 20, 2), 1),
    ((40000,), (1,), 16),  # several tiles
    ((1,), (1,), 5),
]


def tables(dtype: DType, device: str) -> tuple[torch.Tensor, RegionTable]:
    """One buffer of random bytes and every shape in it; flat offsets both aligned and odd."""
    numel = 66000
    generator = torch.Generator().manual_seed(1)
    size = (numel * native.ITEM_BYTES[dtype],)
    buffer = torch.randint(0, 256, size, generator=generator, dtype=torch.uint8).to(device)
    regions, flat = [], 0
    for shape, strides, offset in SHAPES:
        regions.append((buffer.data_ptr(), numel, offset, strides, shape, flat))
        flat += torch.Size(shape).numel()
    return buffer, RegionTable(regions)


@pytest.mark.parametrize(("src", "dst"), PAIRS)
def test_like_the_cpu(src: DType, dst: DType) -> None:
    stream = torch.cuda.current_stream().cuda_stream
    _host, host_table = tables(src, "cpu")
    device, table = tables(src, "cuda")
    rows = torch.from_numpy(table.rows).cuda()
    flat_bytes = table.flat_numel * native.ITEM_BYTES[dst]
    expected = torch.zeros(flat_bytes, dtype=torch.uint8)
    native.pack(host_table, expected.data_ptr(), flat_bytes, src_dtype=src, dst_dtype=dst)
    flat = torch.zeros(flat_bytes, dtype=torch.uint8, device="cuda")
    native.cuda_pack(
        table,
        rows.data_ptr(),
        flat.data_ptr(),
        flat_bytes,
        src_dtype=src,
        dst_dtype=dst,
        stream=stream,
    )
    assert torch.equal(flat.cpu(), expected)

    out = torch.zeros(len(table), dtype=torch.int64, device="cuda")
    native.cuda_digest(
        table, rows.data_ptr(), out.data_ptr(), dtype=src, as_dtype=dst, stream=stream
    )
    assert out.tolist() == native.digest(host_table, dtype=src, as_dtype=dst).tolist()

    if src == dst:
        before = device.clone()
        device.zero_()
        native.cuda_unpack(
            table, rows.data_ptr(), flat.data_ptr(), flat_bytes, dtype=dst, stream=stream
        )
        copied, copied_table = tables(src, "cuda")
        copied.zero_()
        native.cuda_copy(
            table,
            copied_table,
            rows.data_ptr(),
            torch.from_numpy(copied_table.rows).cuda().data_ptr(),
            src_dtype=src,
            dst_dtype=dst,
            stream=stream,
        )
        assert torch.equal(copied, device)
        assert torch.equal(device[device != 0], before[device != 0])

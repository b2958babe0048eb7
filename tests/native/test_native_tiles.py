"""What the GPU kernels do with a tile, compiled for the host, against the CPU's own code.

Proven: which thread reads and writes what, for every stride and alignment, and the digests. Not
shown here: the launch, the sums over threads, the cache hints; test_native_cuda.py runs those.
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from test_native_regions import PAIRS, TORCH, Spec, bits, cast, specs, world

from megarl import native
from megarl.native import DType, RegionTable
from megarl.native.table import CODES

HERE = Path(__file__).parent
pytestmark = pytest.mark.skipif(
    not native.available() or shutil.which("g++") is None, reason="megarl_cpp or g++ is missing"
)
few = settings(
    max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
LARGE: list[Spec] = [
    (16, (40, 512), (1024, 1)),  # aligned rows, three tiles
    (0, (40000,), (1,)),  # one run
    (3, (19, 1021), (1027, 1)),  # nothing aligned, two and a half tiles
    (8, (6, 5, 24, 32), (4000, 800, 32, 1)),  # three dims to carry over, aligned
    (1, (3, 70, 2, 101), (15000, 210, 104, 1)),
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """tiles_on_host, compiled."""
    library = tmp_path_factory.mktemp("tiles") / "tiles.so"
    sources = HERE.parents[1] / "megarl_cpp" / "csrc"
    subprocess.run(
        ["g++", "-std=c++17", "-O1", "-g0", "-Wall", "-Werror=uninitialized", "-fPIC", "-shared",
         f"-I{sources}", str(HERE / "tiles_on_host.cpp"), "-o", str(library)],
        check=True,
    )  # fmt: skip
    return ctypes.CDLL(str(library)).tiles_on_host


def sweep(
    run: Any,
    source: RegionTable | None,
    target: RegionTable | None,
    pair: tuple[DType, DType],
    *,
    flat: torch.Tensor | None = None,
    write: bool = True,
    digests: np.ndarray | None = None,
) -> None:
    leading = source or target
    assert leading is not None
    uploaded = leading.for_device()
    region_of_tile = uploaded[leading.rows.size :].copy()
    assert uploaded[: leading.rows.size].tolist() == leading.rows.reshape(-1).tolist()
    assert len(region_of_tile) == leading.num_tiles
    pointer = ctypes.c_void_p
    status = run(
        pointer(source.rows.ctypes.data if source else None),
        pointer(target.rows.ctypes.data if target else None),
        pointer(region_of_tile.ctypes.data),
        ctypes.c_int64(leading.num_tiles),
        pointer(None if flat is None else flat.data_ptr()),
        CODES[pair[0]],
        CODES[pair[1]],
        int(write),
        pointer(None if digests is None else digests.ctypes.data),
    )
    assert status == 0


@few
@given(st.lists(specs(), min_size=1, max_size=5), st.sampled_from(PAIRS), st.integers(0, 99))
@example(LARGE, ("bfloat16", "bfloat16"), 1)
@example(LARGE, ("float32", "bfloat16"), 2)
@example(LARGE, ("bfloat16", "float32"), 3)
@example(LARGE, ("raw1", "raw1"), 4)
@example(LARGE, ("float32", "float32"), 5)
@example(LARGE, ("raw8", "raw8"), 6)
def test_pack_unpack_and_digest(
    run: Any, sizes: list[Spec], pair: tuple[DType, DType], seed: int
) -> None:
    src, dst = pair
    _, _, table, flat_numel = world(sizes, src, seed)
    expected, found = (torch.zeros(flat_numel, dtype=TORCH[dst]) for _ in range(2))
    native.pack(table, expected.data_ptr(), expected.nbytes, src_dtype=src, dst_dtype=dst)
    sweep(run, table, None, pair, flat=found)
    assert torch.equal(bits(found), bits(expected))
    digests, alone = np.zeros(len(table), np.int64), np.zeros(len(table), np.int64)
    found.zero_()
    sweep(run, table, None, pair, flat=found, digests=digests)
    assert torch.equal(bits(found), bits(expected))
    sweep(run, table, None, pair, write=False, digests=alone)
    right = native.digest(table, dtype=src, as_dtype=dst).tolist()
    assert digests.tolist() == right and alone.tolist() == right

    buffers, _, target, _ = world(sizes, src, seed + 7)
    like, _, target_like, _ = world(sizes, src, seed + 7)
    native.unpack(target_like, found.data_ptr(), found.nbytes, dtype=dst, dst_dtype=src)
    sweep(run, None, target, (dst, src), flat=found)
    for one, other in zip(buffers, like, strict=True):
        assert torch.equal(bits(one), bits(other)), "a region differs, or its surroundings do"


@pytest.mark.parametrize("pair", PAIRS)
def test_sixteen_bytes_at_a_time(run: Any, pair: tuple[DType, DType]) -> None:
    """Both ends aligned: regions and the flat buffer."""
    src, dst = pair
    sizes: list[Spec] = [LARGE[0], LARGE[3], (32, (40, 96), (128, 1)), (0, (8192 * 3,), (1,))]
    buffers, views, _, _ = world(sizes, src, 5)
    regions, flat = [], 16
    for buffer, (offset, shape, strides) in zip(buffers, sizes, strict=True):
        regions.append((buffer.data_ptr(), buffer.numel(), offset, strides, shape, flat))
        flat += prod(shape) + 16
    table = RegionTable(regions)
    expected, found = (torch.zeros(flat, dtype=TORCH[dst]) for _ in range(2))
    native.pack(table, expected.data_ptr(), expected.nbytes, src_dtype=src, dst_dtype=dst)
    digests = np.zeros(len(table), np.int64)
    sweep(run, table, None, pair, flat=found, digests=digests)
    assert torch.equal(bits(found), bits(expected))
    assert digests.tolist() == native.digest(table, dtype=src, as_dtype=dst).tolist()
    before = [view.clone() for view in views]
    for buffer in buffers:
        buffer.zero_()
    sweep(run, None, table, (dst, src), flat=found)
    for view, old in zip(views, before, strict=True):
        assert torch.equal(bits(view), bits(cast(cast(old, dst), src)))


@few
@given(specs(), st.permutations(range(4)), st.sampled_from(PAIRS), st.integers(0, 99))
@example((16, (4, 30, 512), (16384, 520, 1)), [3, 2, 1, 0], ("float32", "bfloat16"), 1)
@example((16, (4, 30, 512), (16384, 520, 1)), [0, 1, 2, 3], ("bfloat16", "bfloat16"), 1)
def test_copy(run: Any, spec: Spec, order: list[int], pair: tuple[DType, DType], seed: int) -> None:
    """The same box with other strides on the other side."""
    src, dst = pair
    _, shape, _ = spec
    strides, step = [0] * len(shape), 1
    for dim in (d for d in order if d < len(shape)):
        strides[dim], step = step, step * (shape[dim] + 8)
    _, (view,), table, _ = world([spec], src, seed)
    _, (target,), target_table, _ = world([(8, shape, tuple(strides))], dst, seed + 1)
    digests = np.zeros(1, np.int64)
    sweep(run, table, target_table, pair, digests=digests)
    assert torch.equal(bits(target), bits(cast(view, dst)))
    assert digests.tolist() == native.digest(table, dtype=src, as_dtype=dst).tolist()


def test_too_many_elements_in_rows_are_refused() -> None:
    """The walk counts in 32 bits, but for a region without gaps."""
    RegionTable([(0, 1 << 40, 0, (1,), (1 << 32,), 0)]).for_device()
    RegionTable([(0, 1 << 40, 0, (1 << 20, 1), (1 << 16, (1 << 16) - 1), 0)]).for_device()
    table = RegionTable([(0, 1 << 40, 0, (1 << 20, 1), (1 << 16, 1 << 16), 0)])
    with pytest.raises(ValueError, match="region 0 has 4294967296 elements in rows"):
        table.for_device()

"""pack, unpack, copy and digest against torch views and a digest written out in numpy."""

from __future__ import annotations

from math import prod

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megarl import native
from megarl.native import DType, RegionTable

pytestmark = pytest.mark.skipif(not native.available(), reason="megarl_cpp is not built")

TORCH: dict[DType, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "raw1": torch.uint8,
    "raw2": torch.int16,
    "raw4": torch.int32,
    "raw8": torch.int64,
}
Spec = tuple[int, tuple[int, ...], tuple[int, ...]]  # offset, shape, strides


def random_values(numel: int, dtype: DType, seed: int) -> torch.Tensor:
    """Random bits, so that every exponent, NaN and infinity comes up."""
    generator = torch.Generator().manual_seed(seed)
    count = numel * native.ITEM_BYTES[dtype]
    raw = torch.randint(0, 256, (count,), generator=generator, dtype=torch.uint8)
    return raw.view(TORCH[dtype])


def bits(tensor: torch.Tensor) -> torch.Tensor:
    # Not contiguous(): that keeps an odd stride where a dim has one element.
    return tensor.clone(memory_format=torch.contiguous_format).view(torch.uint8)


@st.composite
def specs(draw: st.DrawFn) -> Spec:
    """A region that does not overlap itself: dims of a padded box, in any order of strides."""
    shape = tuple(draw(st.lists(st.integers(1, 9), min_size=1, max_size=4)))
    padded = [n + draw(st.integers(0, 3)) for n in shape]
    order = draw(st.permutations(range(len(shape))))
    strides, step = [0] * len(shape), draw(st.sampled_from([1, 1, 2]))
    for dim in order:
        strides[dim], step = step, step * padded[dim]
    return draw(st.integers(0, 5)), shape, tuple(strides)


def length(spec: Spec) -> int:
    offset, shape, strides = spec
    return offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True)) + 1


def world(
    sizes: list[Spec], dtype: DType, seed: int
) -> tuple[list[torch.Tensor], list[torch.Tensor], RegionTable, int]:
    """Buffers, their views, the table over them; the flat buffer has a gap before each region."""
    buffers = [random_values(length(s) + 2, dtype, seed + i) for i, s in enumerate(sizes)]
    views = [
        b.as_strided(shape, strides, offset)
        for b, (offset, shape, strides) in zip(buffers, sizes, strict=True)
    ]
    regions, flat = [], 1
    for b, (offset, shape, strides) in zip(buffers, sizes, strict=True):
        regions.append((b.data_ptr(), b.numel(), offset, strides, shape, flat))
        flat += prod(shape) + 1
    return buffers, views, RegionTable(regions), flat


def cast(tensor: torch.Tensor, dtype: DType) -> torch.Tensor:
    """torch's cast with its NaN made the one that the kernels write, bit for bit."""
    if tensor.dtype == TORCH[dtype]:
        return tensor
    out = tensor.to(TORCH[dtype])
    if dtype == "bfloat16":
        out.view(torch.int16)[torch.isnan(tensor)] = 0x7FC0
    else:  # widening is exact, payloads of NaN included
        halves = tensor.clone(memory_format=torch.contiguous_format).view(torch.int16)
        out = (halves.to(torch.int32) << 16).view(torch.float32)
    return out


PAIRS: list[tuple[DType, DType]] = [
    *((d, d) for d in native.ITEM_BYTES),
    ("float32", "bfloat16"),
    ("bfloat16", "float32"),
]


@settings(max_examples=150, deadline=None)
@given(st.lists(specs(), min_size=1, max_size=5), st.sampled_from(PAIRS), st.integers(0, 99))
def test_pack_and_unpack(sizes: list[Spec], pair: tuple[DType, DType], seed: int) -> None:
    src, dst = pair
    _, views, table, flat_numel = world(sizes, src, seed)
    flat = torch.zeros(flat_numel, dtype=TORCH[dst])
    digests = np.full(len(table), 77)
    codes = {"src_dtype": src, "dst_dtype": dst}
    native.pack(table, flat.data_ptr(), flat.nbytes, digests=digests, **codes)
    np.testing.assert_array_equal(digests, native.digest(table, dtype=src, as_dtype=dst))
    expected = torch.zeros_like(flat)
    start = 1
    for view in views:
        expected[start : start + view.numel()] = cast(view, dst).reshape(-1)
        start += view.numel() + 1
    assert torch.equal(bits(flat), bits(expected))

    buffers, targets, table, _ = world(sizes, src, seed + 7)
    before = [b.clone() for b in buffers]
    native.unpack(table, flat.data_ptr(), flat.nbytes, dtype=dst, dst_dtype=src)
    start = 1
    for old, buffer, target in zip(before, buffers, targets, strict=True):
        piece = cast(flat[start : start + target.numel()], src).reshape(target.shape)
        old.as_strided(target.shape, target.stride(), target.storage_offset()).copy_(piece)
        assert torch.equal(bits(buffer), bits(old)), "a region differs, or its surroundings do"
        start += target.numel() + 1


@settings(max_examples=100, deadline=None)
@given(specs(), st.permutations(range(4)), st.sampled_from(PAIRS), st.integers(0, 99))
def test_copy(spec: Spec, order: list[int], pair: tuple[DType, DType], seed: int) -> None:
    """The same box with other strides on the other side."""
    src, dst = pair
    _, shape, _ = spec
    strides, step = [0] * len(shape), 1
    for dim in (d for d in order if d < len(shape)):
        strides[dim], step = step, step * (shape[dim] + 1)
    _, (view,), table, _ = world([spec], src, seed)
    _, (target,), target_table, _ = world([(3, shape, tuple(strides))], dst, seed + 1)
    native.copy(table, target_table, src_dtype=src, dst_dtype=dst)
    assert torch.equal(bits(target), bits(cast(view, dst)))


def scramble(z: np.ndarray) -> np.ndarray:
    z = (z + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(32))) * np.uint64(0xD6E8FEB86659FD93)
    return z ^ (z >> np.uint64(29))


def digest_reference(tensor: torch.Tensor) -> int:
    """32-bit words of the content times weights: one per place in a block, one per block."""
    raw = bits(tensor.reshape(-1)).numpy().tobytes()
    words = np.frombuffer(raw + bytes(-len(raw) % 4), dtype="<u4").astype(np.uint64)
    place = np.arange(words.size, dtype=np.uint64)
    small = (scramble(place % np.uint64(4096)) >> np.uint64(32)) | np.uint64(1)
    large = scramble(~(place // np.uint64(4096))) | np.uint64(1)
    length = np.array([tensor.numel()], dtype=np.uint64) ^ np.uint64(0x5555555555555555)
    return int(np.append(words * small * large, scramble(length)).sum().view(np.int64))


def test_weights_of_a_block_differ() -> None:
    """So that two equal flips, or two words that changed places, never cancel inside a block."""
    place = np.arange(4096, dtype=np.uint64)
    assert len(np.unique((scramble(place) >> np.uint64(32)) | np.uint64(1))) == 4096


@settings(max_examples=100, deadline=None)
@given(st.lists(specs(), min_size=1, max_size=4), st.sampled_from(PAIRS), st.integers(0, 99))
def test_digest(sizes: list[Spec], pair: tuple[DType, DType], seed: int) -> None:
    """What a sender says the receiver will hold is what the receiver finds, whatever strides."""
    dtype, as_dtype = pair
    _, views, table, _ = world(sizes, dtype, seed)
    digests = native.digest(table, dtype=dtype, as_dtype=as_dtype)
    assert digests.tolist() == [digest_reference(cast(view, as_dtype)) for view in views]


def digest_of(tensor: torch.Tensor) -> int:
    strides, shape = tuple(tensor.stride()), tuple(tensor.shape)
    table = RegionTable([(tensor.data_ptr(), tensor.numel(), 0, strides, shape, 0)])
    return int(native.digest(table, dtype="float32")[0])


def test_digest_detects() -> None:
    """Any one changed bit, swapped elements, swapped or permuted rows, zeros of another length."""
    x = torch.randn(16, 32)
    seen = {digest_of(x)}
    for i in range(x.numel()):
        y = x.clone()
        y.view(torch.int32).view(-1)[i] ^= 1 << (i % 31)
        seen.add(digest_of(y))
    permuted = [x[torch.randperm(16, generator=torch.manual_seed(i))] for i in range(50)]
    seen |= {digest_of(p) for p in permuted}
    seen |= {digest_of(torch.zeros(n)) for n in range(1, 40)}
    seen |= {digest_of(x.t().contiguous()), digest_of(-x), digest_of(x.flip(0))}
    ordinary = torch.arange(8.0).reshape(2, 4)
    seen |= {digest_of(ordinary), digest_of(ordinary.flip(0)), digest_of(ordinary.flip(1))}
    assert len(seen) == 1 + x.numel() + 50 + 39 + 3 + 3


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "raw8"])
def test_two_flipped_signs_do_not_cancel(dtype: DType) -> None:
    x = random_values(64, dtype, seed=3)
    raw = x.view(torch.uint8).reshape(64, -1)
    table = RegionTable([(x.data_ptr(), 64, 0, (1,), (64,), 0)])
    seen = {int(native.digest(table, dtype=dtype)[0])}
    for i in range(64):
        for j in range(i):
            raw[[i, j], -1] ^= 0x80
            seen.add(int(native.digest(table, dtype=dtype)[0]))
            raw[[i, j], -1] ^= 0x80
    assert len(seen) == 1 + 64 * 63 // 2


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
def test_threads_do_not_change_anything(threads: int) -> None:
    big = torch.randn(700, 1100)
    small = torch.randn(50, 7)
    regions = [
        (big.data_ptr(), big.numel(), 100, (1100, 1), (700, 999), 0),
        (small.data_ptr(), small.numel(), 0, (7, 1), (50, 5), 700 * 999),
        (big.data_ptr(), big.numel(), 3, (1, 1100), (1000, 699), 700 * 999 + 250),
    ]
    table = RegionTable(regions)
    flat = torch.zeros(table.flat_numel, dtype=torch.bfloat16)
    types: dict[str, DType] = {"src_dtype": "float32", "dst_dtype": "bfloat16"}
    native.pack(table, flat.data_ptr(), flat.nbytes, threads=threads, **types)
    parts = [big[:, 100:1099], small[:, :5], big.as_strided((1000, 699), (1, 1100), 3)]
    expected = torch.cat([p.reshape(-1).to(torch.bfloat16) for p in parts])
    assert torch.equal(flat, expected)
    digests = native.digest(table, dtype="float32", threads=threads)
    assert digests.tolist() == [digest_reference(p) for p in parts]
    out = torch.zeros_like(flat)
    flats = [(flat.data_ptr(), flat.numel(), r[5], (1,), (prod(r[4]),), 0) for r in regions]
    outs = [(out.data_ptr(), *f[1:]) for f in flats]
    native.copy(
        RegionTable(flats), RegionTable(outs), src_dtype="raw2", dst_dtype="raw2", threads=threads
    )
    assert torch.equal(out, expected)


@pytest.mark.parametrize(("width", "offset"), [(4001, 3), (1024, 0), (90, 1)])
def test_what_goes_past_the_caches(width: int, offset: int) -> None:
    """Calls that write 32 MB or more stream long rows: same bytes, and nothing beside them."""
    rows = (17 << 20) // width
    source = torch.randint(-9999, 9999, (rows * (width + 5) + 8,), dtype=torch.int16)
    view = source.as_strided((rows, width), (width + 5, 1), offset)
    shape, strides = (rows, width), (width + 5, 1)
    table = RegionTable([(source.data_ptr(), source.numel(), offset, strides, shape, 1)])
    flat = torch.zeros(rows * width + 2, dtype=torch.int16)
    digests = np.zeros(1, np.int64)
    native.pack(
        table, flat.data_ptr(), flat.nbytes, src_dtype="raw2", dst_dtype="raw2",
        digests=digests, threads=2,
    )  # fmt: skip
    assert torch.equal(flat[1:-1], view.reshape(-1)) and flat[0] == flat[-1] == 0
    assert digests.tolist() == native.digest(table, dtype="raw2").tolist()
    target = torch.full_like(source, 7)
    expected = target.clone()
    expected.as_strided(shape, strides, offset + 1).copy_(view)
    other = RegionTable([(target.data_ptr(), target.numel(), offset + 1, strides, shape, 1)])
    native.unpack(other, flat.data_ptr(), flat.nbytes, dtype="raw2")
    assert torch.equal(target, expected)
    target.fill_(7)
    native.copy(table, other, src_dtype="raw2", dst_dtype="raw2")
    assert torch.equal(target, expected)


def test_rounding_is_torchs() -> None:
    """All 65536 upper halves with lower halves around the tie."""
    upper = torch.arange(65536, dtype=torch.int64).repeat_interleave(6) << 16
    lower = torch.tensor([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF]).repeat(65536)
    values = (upper | lower).to(torch.int32).view(torch.float32)
    out = torch.empty(values.numel(), dtype=torch.bfloat16)
    n = values.numel()
    table = RegionTable([(values.data_ptr(), n, 0, (1,), (n,), 0)])
    native.pack(table, out.data_ptr(), out.nbytes, src_dtype="float32", dst_dtype="bfloat16")
    nan = torch.isnan(values)
    assert torch.equal(out[~nan].view(torch.int16), values[~nan].bfloat16().view(torch.int16))
    assert torch.isnan(out[nan]).all() and not torch.isnan(out[~nan]).any()


@pytest.mark.parametrize(
    ("region", "message"),
    [
        ((0, 10, 0, (4, 1), (3, 3), 0), r"reach element 10 of a buffer of 10"),
        ((0, 10, 10, (1,), (1,), 0), "reach element 10"),
        ((0, 10, 0, (1,), (0,), 0), "sizes must be positive"),
        ((0, 10, 5, (-1,), (2,), 0), "not negative"),
        ((0, 10, -1, (1,), (2,), 0), "not negative"),
        ((0, 9999, 0, (512, 128, 32, 8, 2), (2, 2, 2, 2, 2), 0), "keeps 5 dims"),
    ],
)
def test_bad_regions_are_refused(region: tuple, message: str) -> None:  # type: ignore[type-arg]
    with pytest.raises(ValueError, match=message):
        RegionTable([region])


def test_bad_calls_are_refused() -> None:
    x = torch.zeros(10)
    table = RegionTable(
        [(x.data_ptr(), 10, 0, (1,), (6,), 0), (x.data_ptr(), 10, 4, (1,), (6,), 5)]
    )
    single = RegionTable([(x.data_ptr(), 10, 0, (1,), (6,), 2)])
    same: dict[str, DType] = {"src_dtype": "float32", "dst_dtype": "float32"}
    with pytest.raises(ValueError, match="31 bytes: the regions reach 32"):
        native.pack(single, x.data_ptr(), 31, **same)
    with pytest.raises(ValueError, match="regions 0 and 1 overlap"):
        native.pack(table, x.data_ptr(), 100, **same)
    with pytest.raises(ValueError, match="2 source regions, 1 destinations"):
        native.copy(table, single, **same)
    other = RegionTable([(x.data_ptr(), 10, 0, (1,), (7,), 0)])
    with pytest.raises(ValueError, match="region 0: source has 6 elements, destination 7"):
        native.copy(single, other, **same)
    with pytest.raises(ValueError, match="no such cast"):
        native.digest(single, dtype="float32", as_dtype="float16")


def test_the_library_checks_for_itself() -> None:
    """A table that was changed after its making is caught by the C++ side too."""
    x = torch.zeros(10)
    table = RegionTable([(x.data_ptr(), 10, 0, (1,), (6,), 0)])
    table.rows[0, 2] = 5
    with pytest.raises(ValueError, match="region 0 leaves its buffer"):
        native.digest(table, dtype="float32")
    with pytest.raises(ValueError, match="region 0 leaves its buffer"):
        native.pack(table, x.data_ptr(), 40, src_dtype="float32", dst_dtype="float32")


def test_an_empty_table_is_fine() -> None:
    table = RegionTable([])
    native.pack(table, 0, 0, src_dtype="float32", dst_dtype="float32")
    assert native.digest(table, dtype="raw1").size == 0


def test_rows_of_one_element_and_merged_dims() -> None:
    table = RegionTable([(0, 1000, 0, (100, 10, 1), (3, 10, 10), 0)])
    assert table.rows[0, 3:11].tolist() == [1, 1, 1, 300, 0, 0, 0, 1]
    table = RegionTable([(0, 1000, 0, (7, 50, 1), (1, 4, 10), 0)])
    assert table.rows[0, 3:11].tolist() == [1, 1, 4, 10, 0, 0, 50, 1]

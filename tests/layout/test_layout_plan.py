"""Properties of plans, on whole jobs played through in one process.

Written once: `run` fails on a second write, and afterwards no element is untouched. Right: every
buffer equals the engine's own sharding, written out literally. No more than needed: received
elements equal an independently counted lower bound.
"""

from __future__ import annotations

import random
from collections import Counter
from itertools import pairwise

import layout_reference as reference
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from layout_world import (
    UNTOUCHED,
    empty,
    fill,
    hf_values,
    megatron_parameters,
    megatron_ranks,
    megatron_world,
    model,
    run,
    vllm_world,
)
from plan_checks import check_plan, crossed, crossing, held_by_counting

from megarl.errors import PlanError
from megarl.layout import (
    Box,
    MegatronSlice,
    Piece,
    Placement,
    file_placement,
    hf_tensors,
    make_plan,
)
from megarl.layout.plan import balance


@settings(max_examples=60, deadline=None)
@given(
    family=st.sampled_from(["llama", "mistral", "qwen2", "qwen3"]),
    layout=st.sampled_from([(1, 1, 1), (2, 1, 1), (4, 1, 1), (1, 2, 1), (2, 2, 2), (4, 2, 1)]),
    dp=st.sampled_from([1, 2]),
    rollout_tp=st.sampled_from([1, 2, 4, 8]),
    kv_heads=st.sampled_from([4, 8]),
    vocab=st.sampled_from([37, 128, 150]),
    tied=st.booleans(),
    layernorm=st.sampled_from(["local", "te"]),
    grain=st.sampled_from([1, 20, 1 << 16]),
)
def test_actor_to_rollout(
    family: str,
    layout: tuple[int, int, int],
    dp: int,
    rollout_tp: int,
    kv_heads: int,
    vocab: int,
    tied: bool,
    layernorm: str,
    grain: int,
) -> None:
    tp, pp, vpp = layout
    shape = model(family, num_key_value_heads=kv_heads, vocab_size=vocab, tie_word_embeddings=tied)
    tensors = hf_values(shape, padded=True)
    slices = megatron_ranks(shape, tp=tp, pp=pp, dp=dp, vpp_size=vpp, layernorm=layernorm)
    world = -(-len(slices) // rollout_tp) * rollout_tp
    sources, weights = megatron_world(shape, slices, tensors, padded=True)
    destinations, buffers = vllm_world(shape, world, rollout_tp)
    plan = make_plan(sources, destinations, node_of=lambda r: r // 2, grain=grain)
    run(plan, weights, buffers)
    for rank in range(world):
        expected = reference.vllm_rank(shape, tensors, rank % rollout_tp, rollout_tp)
        for name, buffer in buffers[rank].items():
            np.testing.assert_array_equal(buffer, expected[name], f"rank {rank} {name}")
        counted = held_by_counting(shape, sources.get(rank, ()), destinations[rank])
        assert plan.lower_bound_elements(rank) == counted
    check_plan(plan, range(world))


@settings(max_examples=30, deadline=None)
@given(
    family=st.sampled_from(["llama", "qwen2", "qwen3"]),
    old=st.sampled_from([(1, 1, 1), (2, 2, 1), (4, 1, 1)]),
    new=st.sampled_from([(4, 1, 1), (1, 2, 2), (2, 4, 1)]),
    vocab=st.sampled_from([37, 150]),
    tied=st.booleans(),
)
def test_through_files_and_back(
    family: str,
    old: tuple[int, int, int],
    new: tuple[int, int, int],
    vocab: int,
    tied: bool,
) -> None:
    """Megatron -> files -> Megatron in another layout -> files: bit-equal; padding is not saved."""
    shape = model(family, vocab_size=vocab, tie_word_embeddings=tied)
    tensors = hf_values(shape, padded=False)
    files = {0: file_placement(shape)}

    def slices(layout: tuple[int, int, int]) -> dict[int, MegatronSlice]:
        tp, pp, vpp = layout
        return megatron_ranks(shape, tp=tp, pp=pp, dp=2, vpp_size=vpp)

    sources, weights = megatron_world(shape, slices(old), tensors, padded=False)
    written = {0: empty(hf_tensors(shape))}
    run(make_plan(sources, files), weights, written)
    for name, expected in tensors.items():
        np.testing.assert_array_equal(written[0][name], expected)

    loaders, expected_buffers = megatron_world(shape, slices(new), tensors, padded=False)
    loaded = {r: empty(megatron_parameters(shape, s)) for r, s in slices(new).items()}
    run(make_plan(files, loaders), written, loaded)
    for rank, buffers in expected_buffers.items():
        for name, expected in buffers.items():
            np.testing.assert_array_equal(loaded[rank][name], expected, f"{rank} {name}")
    again = {0: empty(hf_tensors(shape))}
    run(make_plan(loaders, files), loaded, again)
    assert all((again[0][name] == tensors[name]).all() for name in tensors)


def test_value_model_through_files() -> None:
    shape = model("qwen2", architectures=["Qwen2ForSequenceClassification"])
    tensors = hf_values(shape, padded=False)
    sources, weights = megatron_world(
        shape, megatron_ranks(shape, tp=2, pp=2), tensors, padded=False
    )
    written = {0: empty(hf_tensors(shape))}
    run(make_plan(sources, {0: file_placement(shape)}), weights, written)
    assert all((written[0][name] == tensors[name]).all() for name in tensors)


def test_same_layout_needs_no_wire() -> None:
    shape = model(num_key_value_heads=8)
    tensors = hf_values(shape, padded=True)
    sources, _ = megatron_world(shape, megatron_ranks(shape, tp=4, dp=2), tensors, padded=True)
    destinations, _ = vllm_world(shape, 8, 4)
    plan = make_plan(sources, destinations)
    assert all(t.src == t.dst for t in plan.transfers)


@pytest.mark.parametrize(
    ("tp", "dp", "world", "rollout_tp"),
    [(4, 4, 16, 2), (2, 4, 8, 4), (2, 4, 16, 4), (1, 4, 16, 2), (1, 3, 16, 2), (2, 3, 7, 1)],
)
def test_equal_holders_share_the_load(tp: int, dp: int, world: int, rollout_tp: int) -> None:
    """Within each set of data-parallel copies; how much a shard is asked for is not ours to say."""
    shape = model(num_key_value_heads=8, num_hidden_layers=8, vocab_size=64)
    tensors = hf_values(shape, padded=True)
    sources, _ = megatron_world(shape, megatron_ranks(shape, tp=tp, dp=dp), tensors, padded=True)
    plan = make_plan(sources, vllm_world(shape, world, rollout_tp)[0], grain=64)
    for t in range(tp):
        assert balance(plan, range(t, tp * dp, tp)) < 1.05


def test_a_holder_on_the_node_is_preferred() -> None:
    shape = model()
    tensors = hf_values(shape, padded=True)
    sources, _ = megatron_world(shape, megatron_ranks(shape, tp=2, dp=2), tensors, padded=True)
    plan = make_plan(sources, vllm_world(shape, 4, 1)[0], node_of=lambda r: r // 2)
    assert all(t.src // 2 == t.dst // 2 for t in plan.transfers)


def random_placements(seed: int) -> tuple[dict[int, Placement], dict[int, Placement]]:
    """Overlapping boxes of a few shapes, cut at random; together the sources hold everything."""
    rng = random.Random(seed)
    shapes = {"a": (12,), "b": (8, 6), "c": (4, 3, 5), "d": (9, 1)}

    def cut(size: int) -> list[int]:
        inner = rng.sample(range(1, size), rng.randint(0, min(3, size - 1)))
        return [0, *sorted(inner), size]

    def tiles(name: str) -> list[Piece]:
        boxes = [Box((), ())]
        for size in shapes[name]:
            spans = list(pairwise(cut(size)))
            boxes = [Box((*b.lo, lo), (*b.hi, hi)) for b in boxes for lo, hi in spans]
        strides = tuple(int(np.prod(shapes[name][d + 1 :])) for d in range(len(shapes[name])))
        return [
            Piece(name, b, name, int(np.dot(b.lo, strides)), strides)
            for b in rng.sample(boxes, len(boxes))
        ]

    ranks = range(5)
    sources: dict[int, list[Piece]] = {r: [] for r in ranks}
    destinations: dict[int, list[Piece]] = {r: [] for r in range(2, 8)}
    for name in shapes:
        for _ in range(rng.randint(1, 3)):
            for piece in tiles(name):
                for rank in rng.sample(ranks, rng.randint(1, 3)):
                    sources[rank].append(piece)
        for rank in destinations:
            destinations[rank] += [p for p in tiles(name) if rng.random() < 0.7]
    return (
        {r: tuple(p) for r, p in sources.items()},
        {r: tuple(p) for r, p in destinations.items()},
    )


@pytest.mark.parametrize("seed", range(20))
def test_overlapping_sources_still_write_once(seed: int) -> None:
    sources, destinations = random_placements(seed)
    nodes = [r % 2 for r in range(8)]
    plan = make_plan(sources, destinations, node_of=nodes.__getitem__, grain=1 + seed % 7)
    assert crossed(plan, nodes) == crossing(sources, destinations, nodes)
    written: Counter[tuple[int, str, int]] = Counter()
    for t in plan.transfers:
        grid = np.indices(t.box.shape).reshape(len(t.box.shape), -1)
        dst = t.dst_offset + np.dot(t.dst_strides, grid)
        # All buffers of a tensor are whole and laid out alike: an element keeps its place.
        assert (dst == t.src_offset + np.dot(t.src_strides, grid)).all()
        if t.relay:
            assert all(written[t.src, t.src_buffer, int(at)] == 1 for at in dst)
        written.update((t.dst, t.dst_buffer, int(at)) for at in dst)
        side = destinations if t.relay else sources
        assert any(piece.box.contains(t.box) for piece in side[t.src] if piece.tensor == t.tensor)
    assert set(written.values()) == {1}
    needed = sum(piece.box.numel for pieces in destinations.values() for piece in pieces)
    assert len(written) == needed
    check_plan(plan, range(8))


@pytest.mark.parametrize("seed", range(5))
def test_a_ranks_part_is_cut_from_the_whole(seed: int) -> None:
    sources, destinations = random_placements(seed)
    whole = make_plan(sources, destinations, node_of=lambda r: r % 2)
    for rank in range(8):
        part = make_plan(sources, destinations, node_of=lambda r: r % 2, rank=rank)
        assert part.transfers == tuple(t for t in whole.transfers if rank in (t.src, t.dst))
        assert part.digest() == whole.digest()
        assert part.lower_bound_elements(rank) == whole.lower_bound_elements(rank)


def test_digest_sees_every_input() -> None:
    sources, destinations = random_placements(0)
    digests = {
        make_plan(sources, destinations).digest(),
        make_plan(sources, destinations, node_of=lambda r: r % 2).digest(),
        make_plan(sources, {**destinations, 2: destinations[2][1:]}).digest(),
        make_plan({**sources, 9: sources[0]}, destinations).digest(),
    }
    assert len(digests) == 4
    assert make_plan(sources, destinations).digest() in digests


def test_errors_name_tensor_and_box() -> None:
    held = Piece("model.norm.weight", Box((0,), (6,)), "n", 0, (1,))
    wanted = Piece("model.norm.weight", Box((4,), (8,)), "n", 0, (1,))
    with pytest.raises(PlanError, match=r"rank 1 needs model.norm.weight \[4:8\].*holds \[6:8\]"):
        make_plan({0: (held,)}, {1: (wanted,)})
    unknown = Piece("model.norms.weight", Box((0,), (6,)), "n", 0, (1,))
    with pytest.raises(PlanError, match=r"model.norms.weight.*did you mean model.norm.weight\?"):
        make_plan({0: (held,)}, {1: (unknown,)})
    flat = Piece("model.norm.weight", Box((0, 0), (6, 1)), "n", 0, (1, 1))
    with pytest.raises(PlanError, match="differ in dims"):
        make_plan({0: (held,)}, {1: (flat,)})


def test_plans_can_be_read() -> None:
    sources, destinations = random_placements(1)
    plan = make_plan(sources, destinations)
    assert len(plan.table().splitlines()) == len(plan.transfers) + 1
    assert len(plan.summary().splitlines()) == 8 + 1


def test_filling_is_checked() -> None:
    """The test's own tool: a fresh world has no element that a placement does not reach."""
    shape = model("qwen3")
    destinations, buffers = vllm_world(shape, 2, 2)
    tensors = hf_values(shape, padded=True)
    for rank, placement in destinations.items():
        assert all((b != UNTOUCHED).all() for b in fill(buffers[rank], placement, tensors).values())

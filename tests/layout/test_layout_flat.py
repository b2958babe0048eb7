"""Flat shards as boxes, against plain slices of the flattened tensors.

Proven: the boxes of a range hold its elements, each once, in order, and are at most 2k - 1; a plan
from flat shards to vLLM's layout moves the right numbers and no more than the bound.
"""

from __future__ import annotations

import math
import random

import layout_world as world
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megarl import native
from megarl.errors import ConfigError
from megarl.layout import VllmSlice, hf_tensors, make_plan, vllm_parameters, vllm_placement
from megarl.layout.flat_side import flat_boxes, flat_pieces, flat_placement

SHAPES = st.lists(st.integers(1, 5), min_size=1, max_size=4).map(tuple)


@given(SHAPES, st.data())
def test_boxes_hold_the_range_in_order(shape: tuple[int, ...], data: st.DataObject) -> None:
    count = math.prod(shape)
    start = data.draw(st.integers(0, count))
    stop = data.draw(st.integers(start, count))
    boxes = flat_boxes(shape, start, stop)
    assert len(boxes) <= 2 * len(shape) - 1
    numbers = np.arange(count).reshape(shape)
    parts = [numbers[tuple(map(slice, box.lo, box.hi))].reshape(-1) for box in boxes]
    found = np.concatenate(parts) if parts else np.arange(0)
    np.testing.assert_array_equal(found, np.arange(start, stop))


def test_the_bound_on_boxes_is_reached() -> None:
    for dims in range(1, 5):
        shape = (4,) * dims
        assert len(flat_boxes(shape, 1, 4**dims - 1)) == 2 * dims - 1


def test_a_range_outside_the_tensor() -> None:
    for start, stop in ((-1, 2), (0, 7), (3, 2)):
        with pytest.raises(ConfigError, match="6 elements"):
            flat_boxes((2, 3), start, stop)


@given(SHAPES, st.data())
def test_pieces_point_at_their_elements(shape: tuple[int, ...], data: st.DataObject) -> None:
    """Through offset and strides, from a buffer that holds the range behind other things."""
    count = math.prod(shape)
    start = data.draw(st.integers(0, count - 1))
    stop = data.draw(st.integers(start + 1, count))
    offset = data.draw(st.integers(0, 3))
    buffer = np.concatenate([np.full(offset, -1), np.arange(start, stop)])
    numbers = np.arange(count).reshape(shape)
    for piece in flat_pieces("t", shape, start, stop, "flat", offset):
        view = np.lib.stride_tricks.as_strided(
            buffer[piece.offset :], piece.box.shape, [s * buffer.itemsize for s in piece.strides]
        )
        np.testing.assert_array_equal(view, numbers[tuple(map(slice, piece.box.lo, piece.box.hi))])


@pytest.mark.parametrize("each", [False, True])
@pytest.mark.parametrize("seed", range(8))
def test_a_plan_from_flat_shards_to_vllm(each: bool, seed: int) -> None:
    """Random sizes: all of every destination arrives, once, by as many elements as the bound."""
    rng = random.Random(seed)
    tp, size = rng.choice([1, 2, 4]), rng.randint(1, 5)
    shape = world.model(
        rng.choice(list(world.ARCHITECTURES)),
        hidden_size=8 * rng.randint(1, 3),
        intermediate_size=4 * rng.randint(1, 5),
        num_hidden_layers=rng.randint(1, 3),
        num_key_value_heads=rng.choice([1, 2, 4]),
        vocab_size=rng.randint(60, 70),
    )
    tensors, shapes = world.hf_values(shape, padded=False), hf_tensors(shape)
    held = {rank: flat_placement(shapes, rank, size, each=each) for rank in range(size)}
    slices = {rank: VllmSlice(rank, tp) for rank in range(tp)}
    wanted = {r: vllm_placement(shape, s, padded_vocab=False) for r, s in slices.items()}
    plan = make_plan(held, wanted)
    assert native.plan(held, wanted) == plan
    sources = {rank: shard(tensors, rank, size, each) for rank in range(size)}
    arrived = {rank: world.empty(vllm_parameters(shape, s)) for rank, s in slices.items()}
    world.run(plan, sources, arrived)
    for rank, buffers in arrived.items():
        expected = world.fill(
            world.empty(vllm_parameters(shape, slices[rank])), wanted[rank], tensors
        )
        for name, found in buffers.items():
            np.testing.assert_array_equal(found, expected[name], name)
        assert plan.received_elements(rank) == dict(plan.lower_bounds)[rank]


def shard(tensors: world.Buffers, rank: int, size: int, each: bool) -> world.Buffers:
    """What the rank holds, cut by numpy."""

    def part(flat: world.Array) -> world.Array:
        length = math.ceil(flat.size / size)
        return flat[rank * length : (rank + 1) * length]

    if each:
        return {name: part(tensor.reshape(-1)) for name, tensor in tensors.items()}
    return {"flat": part(np.concatenate([tensor.reshape(-1) for tensor in tensors.values()]))}

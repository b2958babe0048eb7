"""The planner in C++ takes the decisions of the pure one: plans are equal, errors too."""

from __future__ import annotations

import random
from collections.abc import Iterable

import pytest

from megarl import native
from megarl.errors import PlanError
from megarl.layout import (
    Box,
    MegatronSlice,
    Piece,
    Placement,
    Plan,
    Transfer,
    VllmSlice,
    file_placement,
    make_plan,
    megatron_placement,
    model_shape_from_hf,
    vllm_placement,
)
from megarl.layout.cost import Totals

pytestmark = pytest.mark.skipif(not native.available(), reason="megarl_cpp is not built")


def on_node(rank: int) -> int:
    return rank // 4


@pytest.mark.parametrize("seed", range(20))
def test_equal_on_model_layouts(seed: int) -> None:
    rng = random.Random(seed)
    family = rng.choice(["Llama", "Qwen2", "Qwen3", "Mistral"])
    shape = model_shape_from_hf(
        {
            "architectures": [f"{family}ForCausalLM"],
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 4,
            "num_attention_heads": 8,
            "num_key_value_heads": rng.choice([4, 8]),
            "vocab_size": rng.choice([50, 128, 200]),
            "tie_word_embeddings": rng.random() < 0.5,
        }
    )
    tp, pp, dp, rollout_tp = (rng.choice(c) for c in ([1, 2, 4], [1, 2], [1, 2], [1, 2, 4, 8]))
    sources = {
        r: megatron_placement(shape, MegatronSlice(r % tp, tp, r // (tp * dp), pp))
        for r in range(tp * dp * pp)
    }
    destinations = {
        r: vllm_placement(shape, VllmSlice(r % rollout_tp, rollout_tp)) for r in range(8)
    }
    for node_of in (None, on_node):
        pure = make_plan(sources, destinations, node_of=node_of)
        assert native.plan(sources, destinations, node_of=node_of) == pure
    grain = rng.choice([1, 7, 64])
    for rank in range(8):
        part = make_plan(sources, destinations, node_of=on_node, rank=rank, grain=grain)
        fast = native.plan(sources, destinations, node_of=on_node, rank=rank, grain=grain)
        assert fast == part
    files = {0: file_placement(shape)}
    clipped = {
        r: megatron_placement(shape, MegatronSlice(r % tp, tp), padded_vocab=False)
        for r in range(tp)
    }
    assert native.plan(clipped, files) == make_plan(clipped, files)
    assert native.plan(files, clipped) == make_plan(files, clipped)


def random_cut(rng: random.Random, whole: Box) -> list[Box]:
    """Disjoint boxes that make up a box."""
    dim = rng.randrange(len(whole.lo))
    lo, hi = whole.lo[dim], whole.hi[dim]
    if hi - lo < 2 or rng.random() < 0.2:
        return [whole]
    at = rng.randrange(lo + 1, hi)
    left = Box(whole.lo, (*whole.hi[:dim], at, *whole.hi[dim + 1 :]))
    right = Box((*whole.lo[:dim], at, *whole.lo[dim + 1 :]), whole.hi)
    return random_cut(rng, left) + random_cut(rng, right)


@pytest.mark.parametrize("seed", range(30))
def test_equal_on_overlapping_boxes(seed: int) -> None:
    """Sources cut in several ways at once, some boxes twice on a rank."""
    rng = random.Random(seed)
    shapes = {"a": (17,), "b": (9, 8), "c": (4, 5, 6), "d": (3, 4, 2, 5)}
    sources: dict[int, list[Piece]] = {r: [] for r in (3, 5, 8, 9)}
    destinations: dict[int, list[Piece]] = {r: [] for r in (1, 3, 5, 12)}

    def piece(name: str, box: Box) -> Piece:
        return Piece(name, box, f"{name}{rng.randrange(3)}", rng.randrange(9), box.shape)

    for name, dims in shapes.items():
        whole = Box((0,) * len(dims), dims)
        for _ in range(3):
            for box in random_cut(rng, whole):
                for rank in rng.sample(sorted(sources), rng.randint(1, 3)):
                    sources[rank] += [piece(name, box)] * rng.randint(1, 2)
        for pieces in destinations.values():
            pieces += [piece(name, box) for box in random_cut(rng, whole) if rng.random() < 0.8]
    held: dict[int, Placement] = {r: tuple(p) for r, p in sources.items()}
    needed: dict[int, Placement] = {r: tuple(p) for r, p in destinations.items()}
    grain = 1 + seed % 5
    pure = make_plan(held, needed, node_of=on_node, grain=grain)
    assert native.plan(held, needed, node_of=on_node, grain=grain) == pure
    for rank in (3, 1, 99):
        part = make_plan(held, needed, node_of=on_node, rank=rank, grain=grain)
        assert native.plan(held, needed, node_of=on_node, rank=rank, grain=grain) == part
    totals = native.plan_totals(held, needed, node_of=on_node, grain=grain)
    assert totals == {rank: totals_of(pure, rank) for rank in sorted({*held, *needed})}


def totals_of(plan: Plan, rank: int) -> Totals:
    """Counted from the transfers."""

    def elements(transfers: Iterable[Transfer], near: bool) -> int:
        return sum(t.box.numel for t in transfers if (on_node(t.src) == on_node(t.dst)) == near)

    return Totals(
        local=elements(plan.local(rank), True),
        near_received=elements(plan.receives(rank), True),
        far_received=elements(plan.receives(rank), False),
        near_sent=elements(plan.sends(rank), True),
        far_sent=elements(plan.sends(rank), False),
    )


def test_errors_are_those_of_the_pure_planner() -> None:
    held = Piece("x", Box((0,), (6,)), "n", 0, (1,))
    for wanted in (
        Piece("x", Box((4,), (8,)), "n", 0, (1,)),
        Piece("y", Box((0,), (6,)), "n", 0, (1,)),
        Piece("x", Box((0, 0), (6, 1)), "n", 0, (1, 1)),
    ):
        with pytest.raises(PlanError) as pure:
            make_plan({0: (held,)}, {1: (wanted,)})
        with pytest.raises(PlanError) as fast:
            native.plan({0: (held,)}, {1: (wanted,)})
        assert str(fast.value) == str(pure.value)


def test_nothing_to_do() -> None:
    assert native.plan({}, {}) == make_plan({}, {})
    assert native.plan({0: ()}, {1: ()}, rank=1) == make_plan({0: ()}, {1: ()}, rank=1)

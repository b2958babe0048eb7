"""The memory estimate: what can be counted by hand, and what parallelism must do to it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from megarl.layout import model_shape_from_hf
from megarl.layout.megatron_side import MegatronSlice
from megarl.layout.memory import TrainedWith, activation_bytes, local_elements, rank_memory
from megarl.layout.rules import ModelShape

MODELS = Path(__file__).parents[2] / "configs/recipes/models"
HOW = TrainedWith(
    trained=True, dtype_bytes=2, data_ranks=4, expert_data_ranks=1, sequence_parallel=True,
    context_ranks=1, recompute="full", tokens=8192,
)  # fmt: skip


def shape_of(name: str) -> ModelShape:
    return model_shape_from_hf(json.loads((MODELS / name / "config.json").read_text()), tp=8)


def slices(tp: int, pp: int, ep: int = 1) -> list[MegatronSlice]:
    return [
        MegatronSlice(tp_rank=t, tp_size=tp, pp_rank=p, pp_size=pp, ep_rank=e, ep_size=ep)
        for p in range(pp)
        for t in range(tp)
        for e in range(ep)
    ]


def test_a_stage_of_70b() -> None:
    """20 of 80 layers on 8 tensor ranks: qkv, proj, gate, up, down cut; two norms whole."""
    shape, (h, f, kv) = shape_of("llama-3.1-70b"), (8192, 28672, 1024)
    layer = (2 * h * h + 2 * kv * h + 3 * h * f) // 8 + 2 * h
    middle = slices(8, 4)[8]
    assert local_elements(shape, middle) == (20 * layer, 0)
    memory = rank_memory(shape, middle, HOW)
    assert memory.weights == 2 * 20 * layer
    assert memory.gradients == 4 * 20 * layer
    assert memory.optimizer == 12 * (20 * layer // 4)


@pytest.mark.parametrize(("tp", "pp", "ep"), [(1, 1, 1), (2, 2, 8), (4, 4, 1)])
def test_ranks_together_hold_the_model(tp: int, pp: int, ep: int) -> None:
    """Experts exactly once over expert ranks; the rest once over tensor ranks, norms apart."""
    shape = shape_of("qwen3-30b-a3b")
    held = [local_elements(shape, at) for at in slices(tp, pp, ep)]
    experts = sum(experts for _, experts in held) / tp
    assert experts == 48 * 128 * 3 * 2048 * 768
    dense = sum(dense for dense, _ in held) / ep
    alone = local_elements(shape, MegatronSlice())[0]
    copied = 48 * (2 * 2048 + 2 * 128 + 128 * 2048) + 2048
    assert dense == alone + (tp - 1) * copied


def test_fp32_keeps_no_second_copy() -> None:
    shape, at = shape_of("llama-3.1-8b"), MegatronSlice()
    full = rank_memory(shape, at, replace(HOW, dtype_bytes=4, data_ranks=1))
    assert full.optimizer == 2 * full.weights and full.gradients == full.weights


def test_what_only_scores_has_no_states() -> None:
    memory = rank_memory(shape_of("llama-3.1-8b"), MegatronSlice(), replace(HOW, trained=False))
    assert (memory.gradients, memory.optimizer) == (0, 0) and memory.resident == memory.weights


def test_what_a_save_gathers() -> None:
    """A bucket twice and the own share, in fp32; all of a later stage is one bucket."""
    shape, how = shape_of("llama-3.1-70b"), replace(HOW, gathers=True)
    first, middle = slices(8, 4)[0], slices(8, 4)[8]
    whole, _ = local_elements(shape, middle)
    assert rank_memory(shape, middle, how).gathered == 4 * (2 * whole + whole // 4)
    bucketed = replace(how, bucket_elements=40_000_000)
    assert rank_memory(shape, middle, bucketed).gathered == 4 * (2 * whole + whole // 4)
    # The largest parameter of a stage with the embedding, which may come last into a bucket.
    largest = 40_000_000 + shape.padded_vocab_size * 8192 // 8
    assert rank_memory(shape, first, bucketed).gathered == 4 * (2 * largest + largest // 4)
    assert rank_memory(shape, first, how).gathered > 4 * 2 * whole
    for none in (replace(how, gathers=False), replace(how, trained=False)):
        assert rank_memory(shape, middle, none).gathered == 0


def test_experts_are_gathered_apart() -> None:
    shape, at = shape_of("qwen3-30b-a3b"), slices(2, 2, 8)[-1]
    dense, experts = local_elements(shape, at)
    how = replace(HOW, gathers=True, data_ranks=8, expert_data_ranks=2)
    assert dense < experts
    assert rank_memory(shape, at, how).gathered == 4 * (2 * experts + experts // 2)


def test_activations_by_hand() -> None:
    """8B, one rank, nothing made again: (4 h + 48 heads x 2 ... + 3 f) per token and layer."""
    shape, how = shape_of("llama-3.1-8b"), replace(HOW, recompute=None, tokens=1000)
    layer = 4 * 4096 + (2 * 32 + 2 * 8) * 128 + 3 * 14336
    logits = 1000 * shape.padded_vocab_size * 8
    assert activation_bytes(shape, MegatronSlice(), how) == 1000 * 32 * layer * 2 + logits


def test_parallelism_divides_activations_as_it_should() -> None:
    shape, how = shape_of("llama-3.1-70b"), replace(HOW, recompute=None)
    first = {(t, p): activation_bytes(shape, slices(t, p)[0], how) for t in (4, 8) for p in (2, 4)}
    assert first[8, 4] * 2 == first[4, 4], "sequence parallelism cuts all of it"
    assert first[8, 2] == first[8, 4], "the first stage holds as many micro-batches as stages"
    without = activation_bytes(shape, slices(8, 4)[0], replace(how, sequence_parallel=False))
    assert without > first[8, 4]
    sizes = [activation_bytes(shape, slices(8, 4)[0], replace(how, recompute=r))
             for r in ("full", "selective", None)]  # fmt: skip
    assert sizes == sorted(sizes) and sizes[0] < sizes[1] < sizes[2]

"""Random whole jobs of up to 64 ranks, every family and kind of parallelism, played through.

For each: every destination element written once and right, received elements are the bound, what
crosses to a node are the elements that the node lacks, and the planner in C++ decides the same.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import layout_reference as reference
import numpy as np
import pytest
from layout_world import hf_values, megatron_ranks, megatron_world, model, run, vllm_world
from plan_checks import check_plan

from megarl import native
from megarl.layout import ModelShape, Piece, Placement, Plan, hf_tensors, make_plan

MAX_RANKS = 64
FAST, ALL = 24, 224


@dataclass(frozen=True)
class Job:
    """A drawn layout."""

    shape: ModelShape
    source: dict[str, Any]
    rollout: dict[str, Any]
    world: int
    ranks_per_node: int
    grain: int


def draw(seed: int) -> Job:
    """A job that both engines could run."""
    rng = random.Random(seed)
    family = rng.choice(["llama", "mistral", "qwen2", "qwen3", "mixtral", "qwen3_moe"])
    kv_heads = rng.choice([2, 4, 8])
    tp = rng.choice([t for t in (1, 2, 4) if t <= kv_heads])
    pp, dp = rng.choice([1, 2, 4]), rng.choice([1, 2, 3, 4])
    source: dict[str, Any] = {"tp": tp, "pp": pp, "dp": dp}
    layers = 4
    if pp > 1 and rng.random() < 0.3:
        layers = 2 * pp + 1
        source["first_stage_layers"] = 3
    elif pp > 1 and rng.random() < 0.3:
        layers = 2 * pp
        source["vpp_size"] = 2
    if family in ("mixtral", "qwen3_moe"):
        source["etp"] = etp = rng.choice([e for e in (1, 2, 4) if tp * dp % e == 0])
        source["ep"] = rng.choice([e for e in (1, 2, 4, 8) if tp * dp % (e * etp) == 0])
    shape = model(
        family,
        num_key_value_heads=kv_heads,
        num_hidden_layers=layers,
        vocab_size=rng.choice([37, 64, 101, 150]),
        tie_word_embeddings=rng.random() < 0.4,
    )
    rollout = {
        "tp": rng.choice([1, 2, 4, 8]),
        "pp": rng.choice([1, 1, 2]),
        "expert_parallel": rng.random() < 0.5,
    }
    replica = rollout["tp"] * rollout["pp"]
    needed = -(-tp * pp * dp // replica) * replica
    world = min(needed * rng.choice([1, 1, 2]), MAX_RANKS // replica * replica)
    return Job(shape, source, rollout, world, rng.choice([1, 2, 4, 8, 64]), rng.choice([1, 9, 200]))


@pytest.mark.parametrize(
    "seed",
    [pytest.param(seed, marks=pytest.mark.slow if seed >= FAST else ()) for seed in range(ALL)],
)
def test_a_random_job(seed: int) -> None:
    job = draw(seed)
    shape, nodes = job.shape, [rank // job.ranks_per_node for rank in range(MAX_RANKS)]
    tensors = hf_values(shape, padded=True)
    slices = megatron_ranks(shape, **job.source)
    sources, weights = megatron_world(shape, slices, tensors, padded=True)
    destinations, buffers = vllm_world(shape, job.world, **job.rollout)
    options: dict[str, Any] = {"node_of": nodes.__getitem__, "grain": job.grain}
    plan = make_plan(sources, destinations, **options)
    assert native.plan(sources, destinations, **options) == plan

    run(plan, weights, buffers)
    tp, expert_parallel = job.rollout["tp"], job.rollout["expert_parallel"]
    for rank in range(job.world):
        expected = reference.vllm_rank(shape, tensors, rank % tp, tp, expert_parallel)
        if job.rollout["pp"] > 1 and shape.tied:
            expected["lm_head.weight"] = expected["model.embed_tokens.weight"]
        for name, buffer in buffers[rank].items():
            np.testing.assert_array_equal(buffer, expected[name], f"rank {rank} {name}")
    check_plan(plan, range(max(job.world, len(slices))))
    check_bounds(plan, shape, sources, destinations, nodes)


def check_bounds(
    plan: Plan,
    shape: ModelShape,
    sources: dict[int, Placement],
    destinations: dict[int, Placement],
    nodes: list[int],
) -> None:
    """By masks over the tensors: what each rank and each node needs and lacks."""
    for groups in ([[rank] for rank in destinations], node_groups(destinations, nodes)):
        for group in groups:
            held = mask(shape, [p for rank in group for p in sources.get(rank, ())])
            needed = mask(shape, [p for rank in group for p in destinations[rank]])
            lacking = sum(int((needed[name] & ~held[name]).sum()) for name in needed)
            inside = set(group)
            arrived = sum(
                t.box.numel for rank in group for t in plan.receives(rank) if t.src not in inside
            )
            assert arrived == lacking, f"ranks {group}"


def node_groups(destinations: dict[int, Placement], nodes: list[int]) -> list[list[int]]:
    return [
        [rank for rank in destinations if nodes[rank] == node]
        for node in sorted({nodes[rank] for rank in destinations})
    ]


def mask(shape: ModelShape, pieces: list[Piece]) -> dict[str, np.ndarray]:
    covered = {
        name: np.zeros((max(dims[0], shape.padded_vocab_size), *dims[1:]), dtype=bool)
        for name, dims in hf_tensors(shape).items()
    }
    for piece in pieces:
        covered[piece.tensor][tuple(map(slice, piece.box.lo, piece.box.hi))] = True
    return covered

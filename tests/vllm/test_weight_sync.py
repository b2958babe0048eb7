"""Actor -> vLLM, on real vLLM in the same processes.

Proven: after every sync onto parameters full of NaN, each vLLM parameter is bit for bit what vLLM's
own loaders make of the full tensors, gathered from the actor by an independent restatement of
Megatron's layout; the bytes counted at the transport equal the lower bound on every rank. And each
way in which a sync can silently not arrive is caught at a learning rate of 1e-6, where log-probs
hardly move, in fp32 and bf16. Not shown: CUDA, several nodes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import prod

import jobs_sabotage
import jobs_sync
import pytest
from cluster import Cluster, World
from jobs_sync import SyncCase
from tiny_models import TinyModels

from megarl.layout import ReplicaLayout, model_shape_from_hf, vllm_parameters
from megarl.mesh.layout import MeshLayout
from megarl.validate.models import read_hf_config

pytestmark = [pytest.mark.dist, pytest.mark.vllm]
CASES = {
    "tp2pp2-to-tp2x2": SyncCase("llama", MeshLayout(tp=2, pp=2), 2),
    "tp2pp2-to-tp1x4-cast": SyncCase("qwen3", MeshLayout(tp=2, pp=2), 1, rollout_dtype="bfloat16"),
    "dp4-to-tp2x2-cast": SyncCase("qwen2", MeshLayout(dp=4), 2, rollout_dtype="bfloat16"),
    "pp2-to-tp2-in-another-pool": SyncCase("llama", MeshLayout(pp=2), 2, rollout_ranks=(2, 3)),
    "pp2vpp2dp2-to-tp4": SyncCase("llama3-rope", MeshLayout(pp=2, vpp=2, dp=2), 4),
    "tp2dp2-to-tp2x2-bf16": SyncCase(
        "llama-tied", MeshLayout(tp=2, dp=2), 2, "bfloat16", "bfloat16"
    ),
    "tp2pp2-to-tp2pp2": SyncCase("llama-tied", MeshLayout(tp=2, pp=2), ReplicaLayout(2, pp=2)),
    "tp4-to-tp2x2-interval": SyncCase("llama-4kv", MeshLayout(tp=4), ReplicaLayout(2, tp_stride=2)),
    "tp2pp2-to-pp2x2-interval": SyncCase(
        "llama", MeshLayout(tp=2, pp=2), ReplicaLayout(1, pp=2, pp_stride=2)
    ),
    "tp2dp2-to-pp2x2": SyncCase("mistral", MeshLayout(tp=2, dp=2), ReplicaLayout(1, pp=2)),
    "uneven-pp2dp2-to-tp2pp2-cast": SyncCase(
        "qwen2",
        MeshLayout(pp=2, dp=2, first_stage_layers=3),
        ReplicaLayout(2, pp=2),
        rollout_dtype="bfloat16",
    ),
    "tp2ep2dp2-to-tp2x2-experts": SyncCase(
        "mixtral", MeshLayout(tp=2, dp=2, ep=2, sequence_parallel=True), 2
    ),
    "pp2ep2dp2-to-tp2ep-experts": SyncCase(
        "qwen3-moe", MeshLayout(pp=2, dp=2, ep=2), ReplicaLayout(2, expert_parallel=True)
    ),
    "tp2etp2pp2-to-tp4ep-experts-cast": SyncCase(
        "qwen3-moe",
        MeshLayout(tp=2, pp=2, etp=2, sequence_parallel=True),
        ReplicaLayout(4, expert_parallel=True),
        rollout_dtype="bfloat16",
    ),
}
ODD = "model.layers.1.mlp.down_proj.weight"


FAST = ("tp2pp2-to-tp2x2", "pp2ep2dp2-to-tp2ep-experts")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n not in FAST)) for n in CASES]
)
def test_every_parameter_arrives(name: str, cluster: Cluster, tiny: TinyModels) -> None:
    """Two syncs with a training step between."""
    case, path = CASES[name], tiny(CASES[name].family)
    pools = (range(2), range(2, 4)) if case.rollout_ranks else (range(4),)
    with cluster.world(*pools) as world:
        world.run(jobs_sync.build, path, case)
        by_rank = world.run(jobs_sync.prove_syncs, read_hf_config(path), 2)
    shape, tp = model_shape_from_hf(read_hf_config(path)), case.rollout_tp
    places = ReplicaLayout(tp) if isinstance(tp, int) else tp
    for rank, syncs in enumerate(by_rank):
        for facts in syncs:
            assert not facts.different, f"rank {rank}"
            report = facts.report
            assert report.bytes_received == report.lower_bound_bytes == facts.counted_bytes
            if not case.rollout_ranks or rank in case.rollout_ranks:
                assert facts.parameters == len(vllm_parameters(shape, places.slice_of(rank)))
                assert facts.changed
                assert report.regions_verified > 0
    first, second = (facts.canary for facts in by_rank[0])
    assert first.actor_change == first.rollout_change == 0 < second.actor_change
    if case.actor_dtype == case.rollout_dtype == "float32":
        # What the actor's log-probs changed by, the engines' changed by too.
        assert second.actor_change > 0.1 and max(first.diff, second.diff) < 1e-4
        assert abs(second.actor_change - second.rollout_change) < 2e-4
    sent = sum(syncs[0].report.bytes_sent for syncs in by_rank)
    assert sent == sum(syncs[0].report.bytes_received for syncs in by_rank)
    if name == "tp2pp2-to-tp2pp2":
        assert sent == 0
    elif case.layout.pp > 1:
        assert sent > 0 and by_rank[0][0].report.messages > 3


def everything(name: str, rank: int) -> bool:
    """One query group a rank is stacked in the same order on both sides."""
    return True


def own_stage_but_qkv(name: str, rank: int) -> bool:
    """Two query groups are interleaved in Megatron, and stacked in vLLM."""
    ends = ("model.embed_tokens.",), ("model.norm.", "lm_head.")
    mine = (*(f"model.layers.{layer}." for layer in ((0, 1), (2, 3))[rank]), *ends[rank])
    return name.startswith(mine) and "qkv_proj" not in name


def all_but_experts(name: str, rank: int) -> bool:
    """They are packed on a CPU."""
    return ".experts." not in name


ALIASED: dict[str, tuple[SyncCase, Callable[[str, int], bool]]] = {
    "tp2-to-tp2": (SyncCase("llama", MeshLayout(tp=2), 2, alias=True), everything),
    "pp2-to-tp1x2": (SyncCase("qwen2", MeshLayout(pp=2), 1, alias=True), own_stage_but_qkv),
    "tp2-to-tp2-bf16-tied": (
        SyncCase("llama-tied", MeshLayout(tp=2), 2, "bfloat16", "bfloat16", alias=True),
        everything,
    ),
    "tp2ep2-to-tp2-experts": (
        SyncCase("mixtral", MeshLayout(tp=2, ep=2, sequence_parallel=True), 2, alias=True),
        all_but_experts,
    ),
}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n != "tp2-to-tp2")) for n in ALIASED]
)
def test_what_a_rank_holds_already_is_a_view(name: str, cluster: Cluster, tiny: TinyModels) -> None:
    """By address, through a training step; and nothing is generated between that and the sync."""
    case, expected = ALIASED[name]
    with cluster.world(range(2)) as world:
        world.run(jobs_sync.build, tiny(case.family), case)
        by_rank = world.run(jobs_sync.prove_syncs, read_hf_config(tiny(case.family)), 2)
        answers = world.run(jobs_sync.recover)
        refused = world.run(jobs_sync.generate_dirty)
        again = world.run(jobs_sync.recover)
    assert all("aliased to the actor's, which have changed since" in each for each in refused)
    assert answers[0] and again[0]
    shape = model_shape_from_hf(read_hf_config(tiny(case.family)))
    for rank, syncs in enumerate(by_rank):
        assert isinstance(case.rollout_tp, int)
        sizes = vllm_parameters(shape, ReplicaLayout(case.rollout_tp).slice_of(rank))
        for facts in syncs:
            assert not facts.different and facts.changed, rank
            report, itemsize = facts.report, 2 if case.rollout_dtype == "bfloat16" else 4
            assert facts.aliased == {each for each in sizes if expected(each, rank)}
            aliased = sum(prod(sizes[each]) for each in facts.aliased) * itemsize
            assert report.bytes_aliased == aliased
            rest = sum(map(prod, sizes.values())) * itemsize - aliased
            assert report.bytes_received + report.bytes_local == rest
            assert facts.canary.diff < case_limit(case)


def case_limit(case: SyncCase) -> float:
    """Nats between the two engines."""
    return 1e-4 if case.rollout_dtype == "float32" else 0.2


@pytest.mark.slow
def test_what_cannot_be_recorded_goes_through_vllms_own_loader(
    cluster: Cluster, tiny: TinyModels
) -> None:
    """One tensor, gathered whole on every rank; all parameters as vLLM's loaders make them."""
    case = SyncCase("llama", MeshLayout(tp=2), 2, odd_loader=ODD, strict=False)
    with cluster.world(range(2)) as world:
        world.run(jobs_sync.build, tiny(case.family), case)
        by_rank = world.run(jobs_sync.prove_syncs, read_hf_config(tiny(case.family)), 2)
        texts = world.run(jobs_sync.plan_text)
        for refusal in world.run(jobs_sync.strict_sync, read_hf_config(tiny(case.family))):
            assert f"vLLM's loader of {ODD} computes before it copies" in refusal
            assert "weight_sync.strict=false" in refusal
    for syncs, text in zip(by_rank, texts, strict=True):
        assert f"{ODD}: its loader computes before it copies" in text
        for facts in syncs:
            assert not facts.different and facts.changed
            report = facts.report
            assert report.bytes_indirect == 4 * 64 * 96 // 2, "the half that the rank lacks"
            assert report.bytes_received == report.lower_bound_bytes
            assert facts.counted_bytes == report.bytes_received + report.bytes_indirect


SABOTAGED = {
    "odd": SyncCase("llama-tied", MeshLayout(pp=2), 2, lr=1e-6, odd_loader=ODD, strict=False),
    "fp32": SyncCase("llama-tied", MeshLayout(pp=2), 2, lr=1e-6),
    "bf16": SyncCase("llama-tied", MeshLayout(pp=2), 2, "bfloat16", "bfloat16", lr=1e-6),
}
EXPECTED = {
    "skipped sync": "did not arrive",
    "one wrong element": "did not arrive",
    "one wrong box": "did not arrive",
    "prefix cache left alone": "prefix cache still holds",
    "spoilt after its digest": "of the canary log-prob",
    "packed layer left old": "model.layers.2.mlp.down_proj",
    "tied head left old": "model.embed_tokens",
}


@pytest.fixture(
    scope="module",
    params=[pytest.param(n, marks=[pytest.mark.slow] * (n == "odd")) for n in SABOTAGED],
)
def stage(request: pytest.FixtureRequest, cluster: Cluster, tiny: TinyModels) -> Iterator[World]:
    """Two ranks that have synced once."""
    case = SABOTAGED[request.param]
    with cluster.world(range(2)) as world:
        world.run(jobs_sync.build, tiny(case.family), case)
        world.run(jobs_sync.prove_syncs, read_hf_config(tiny(case.family)), 1)
        yield world


@pytest.mark.parametrize("sabotage", EXPECTED)
def test_a_sync_that_did_not_arrive_is_caught(sabotage: str, stage: World) -> None:
    """On every rank, by name; and the next sync, left alone, is good again."""
    for error in stage.run(jobs_sabotage.sabotaged_sync, sabotage):
        assert error.startswith("VerificationError") and EXPECTED[sabotage] in error
    first, second = stage.run(jobs_sync.recover)
    assert first == second and len(first) == 2


REFUSED = {
    "another plan": "ranks made different plans: ranks [0]:",
    "missing": "it lacks model.norm.weight, which is [64]",
    "extra": "it has model.norm.bias [64], which they do not know",
    "misshapen": "it has model.norm.weight as [63], and they as [64]",
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_does_not_fit_is_refused_before_a_byte_moves(
    what: str, stage: World, tiny: TinyModels
) -> None:
    """On all ranks, whichever is odd."""
    hf = read_hf_config(tiny("llama-tied"))
    for refusal in stage.run(jobs_sync.refused_sync, hf, what):
        assert REFUSED[what] in refusal


def test_a_parameter_that_vllm_replaced_is_not_written_past(stage: World) -> None:
    for refusal in stage.run(jobs_sync.replaced_parameter):
        assert "vLLM replaced model.norm.weight" in refusal
    stage.run(jobs_sync.recover)

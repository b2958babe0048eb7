"""Jobs of tests/vllm: actor -> vLLM syncs, and the proof of each."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from gather_reference import full_weights
from parts import RoleSpec, make_actor, run_plan
from tiny_models import VOCAB_SIZE
from torch import Tensor
from transformers import AutoTokenizer
from worker import Rank

from megarl.config.schema import Config, OptimizerConfig
from megarl.errors import PlanError, RunError, VerificationError
from megarl.layout import Plan, ReplicaLayout, model_shape_from_hf
from megarl.mesh.layout import MeshLayout
from megarl.models.micro_batch import MicroBatch, build_micro_batch
from megarl.reshard import executor
from megarl.reshard.executor import SyncReport
from megarl.roles.canary import CANARY_LIMIT, CanaryReport, CanaryText
from megarl.roles.weight_sync import SyncSettings, WeightSync
from megarl.rollout import engine as rollout_engine
from megarl.train.build_rollout import make_rollout
from megarl.types import Prompt, RolloutRequest, SamplingSpec

BUFFER_BYTES = 1 << 16
"""Small, so that a sync takes several rounds and cuts large regions."""


@dataclass(frozen=True)
class SyncCase:
    """An actor's mesh and the replicas it feeds."""

    family: str
    layout: MeshLayout
    rollout_tp: int | ReplicaLayout
    actor_dtype: str = "float32"
    rollout_dtype: str = "float32"
    lr: float = 1e-2
    canary: bool = True
    overlap: bool = True
    strict: bool = True
    alias: bool = False
    odd_loader: str = ""
    """A parameter of vLLM's whose loader computes before it copies."""
    rollout_ranks: tuple[int, ...] = ()
    """Without any, the actor's."""


@dataclass(frozen=True)
class SyncFacts:
    """What one rank saw of one sync."""

    different: list[str]
    """vLLM parameters that are not bit for bit the reference's."""
    parameters: int
    report: SyncReport
    counted_bytes: int
    """What the transport delivered."""
    changed: bool
    """Whether the weights differ from those of the sync before."""
    canary: CanaryReport
    aliased: frozenset[str]
    """Parameters of this rank's vLLM that lie inside a parameter of its actor, by address."""


@dataclass
class Stage:
    """What the jobs of one world share."""

    case: SyncCase
    actor: Any
    rollout: Any
    sync: WeightSync


def build(rank: Rank, path: str, case: SyncCase) -> None:
    """Actor, vLLM and the sync between them."""
    world = tuple(range(case.layout.size))
    actor = make_actor(
        rank,
        path,
        case.layout,
        ranks=world,
        dtype=case.actor_dtype,
        optimizer=OptimizerConfig(lr=case.lr),
    )
    config = Config()
    config.rollout.dtype, config.rollout.kv_cache_megabytes = case.rollout_dtype, 16
    config.data.max_prompt_length, config.data.max_response_length = 96, 32
    config.rollout.max_num_batched_tokens = 512
    config.rollout.engine_args = {"block_size": 32}  # two blocks of a prompt of 68 tokens are full
    plan = run_plan(
        path,
        RoleSpec(world, case.layout),
        rollout_tp=case.rollout_tp,
        rollout_ranks=case.rollout_ranks,
    )
    tokenizer = AutoTokenizer.from_pretrained(path)
    rollout = make_rollout(config, plan, rank.universe, tokenizer, path)
    if rollout.here:
        rank.kept["engine"] = rollout.engine
        if case.odd_loader:
            _compute_before_copying(rollout.engine._model, case.odd_loader)
    canary = CanaryText(tuple(range(2, 18))) if case.canary else None
    sync = WeightSync(
        rank.universe,
        rank.control,
        plan.actor.shape,
        actor,
        rollout,
        SyncSettings(
            wire_dtype=getattr(torch, case.rollout_dtype),
            buffer_bytes=BUFFER_BYTES,
            overlap=case.overlap,
            strict=case.strict,
            alias=case.alias,
            canary=canary,
            canary_limit=CANARY_LIMIT[getattr(torch, case.rollout_dtype)],
        ),
    )
    rank.kept["stage"] = Stage(case, actor, rollout, sync)


def _compute_before_copying(model: torch.nn.Module, name: str) -> None:
    """A loader as of a model whose parameters are not those of its files."""
    parameter: Any = model.get_parameter(name)
    load = parameter.weight_loader

    def odd(target: Tensor, full: Tensor, *rest: Any) -> None:
        load(target, full * 1.0, *rest)

    parameter._weight_loader = odd
    assert parameter.weight_loader is odd


def prove_syncs(rank: Rank, hf: dict[str, Any], count: int) -> list[SyncFacts]:
    """`count` syncs onto poisoned parameters, a training step between."""
    stage: Stage = rank.kept["stage"]
    facts, before = [], None
    for _ in range(count):
        poison(stage)
        with counting(rank) as counted:
            report = stage.sync.run()
        arrived = snapshot(stage)
        expected = _loaded_by_vllm(rank, stage, hf)
        facts.append(
            SyncFacts(
                [n for n, x in arrived.items() if not _same_bits(x, expected[n])],
                len(arrived),
                report,
                counted[0],
                before is None or any(not _same_bits(x, before[n]) for n, x in arrived.items()),
                stage.sync.canary.report,
                _inside_the_actor(stage),
            )
        )
        before = arrived
        if stage.actor.here:
            train_step(rank)
    return facts


def plan_text(rank: Rank) -> str:
    """What is kept beside a run."""
    stage: Stage = rank.kept["stage"]
    return stage.sync.text()


def refused_sync(rank: Rank, hf: dict[str, Any], what: str) -> str:
    """What a new sync between the same engines is refused with, when one rank is odd."""
    stage: Stage = rank.kept["stage"]
    engine, last = stage.rollout.engine, rank.rank == rank.universe.size - 1
    live, digest = dict(engine.begin_load()), Plan.digest
    name = "model.norm.weight"
    odd = {
        "another plan": live,
        "missing": {key: each for key, each in live.items() if key != name},
        "extra": live | {"model.norm.bias": live[name]},
        "misshapen": live | {name: live[name][:-1]},
    }[what]
    other = mock.patch.object(Plan, "digest", lambda self: digest(self)[::-1])
    settings = SyncSettings(torch.float32, BUFFER_BYTES)
    shape = model_shape_from_hf(hf)
    with (
        mock.patch.object(engine, "begin_load", lambda: odd if last else live),
        other if last and what == "another plan" else nullcontext(),
        counting(rank) as counted,
    ):
        try:
            WeightSync(rank.universe, rank.control, shape, stage.actor, stage.rollout, settings)
        except PlanError as error:
            assert counted == [0]
            return str(error)
    return ""


def replaced_parameter(rank: Rank) -> str:
    """What a sync says when vLLM computes with another tensor than the plan was bound to."""
    stage: Stage = rank.kept["stage"]
    parameter = stage.rollout.engine._model.get_parameter("model.norm.weight")
    kept = parameter.data
    parameter.data = kept.clone()
    try:
        stage.sync.run()
    except VerificationError as error:
        return str(error)
    finally:
        parameter.data = kept
    return ""


def strict_sync(rank: Rank, hf: dict[str, Any]) -> str:
    """What a strict sync between the same engines is refused with."""
    stage: Stage = rank.kept["stage"]
    shape = model_shape_from_hf(hf)
    settings = SyncSettings(torch.float32, BUFFER_BYTES, strict=True)
    try:
        WeightSync(rank.universe, rank.control, shape, stage.actor, stage.rollout, settings)
    except PlanError as error:
        return str(error)
    return ""


def train_step(rank: Rank) -> float:
    """One optimizer step on fixed tokens; returns the gradient norm."""
    stage: Stage = rank.kept["stage"]
    tokens = torch.randint(2, VOCAB_SIZE, (6, 20), generator=torch.Generator().manual_seed(1))
    lengths = torch.full((6,), 4), torch.full((6,), 16)
    micro = [build_micro_batch(tokens, *lengths, [row], 16) for row in range(6)]

    def loss(output: Any, batch: MicroBatch) -> tuple[Tensor, dict[str, Tensor]]:
        value = -output[0].sum() / (96 * stage.case.layout.dp)
        return value, {"loss": value.detach().clone()}

    _, step = stage.actor.engine.train_step(micro, loss, lambda reports: None)
    assert step.applied and math.isfinite(step.grad_norm)
    return float(step.grad_norm)


def poison(stage: Stage) -> None:
    """NaN in every element of vLLM's parameters, where there are any."""
    if not stage.rollout.here:
        return
    for name, parameter in stage.rollout.engine.begin_load().items():
        if name not in stage.sync.aliased:
            parameter.fill_(math.nan)


def snapshot(stage: Stage) -> dict[str, Tensor]:
    """Copies of vLLM's parameters; none on ranks without an engine."""
    if not stage.rollout.here:
        return {}
    model = stage.rollout.engine._model
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def _inside_the_actor(stage: Stage) -> frozenset[str]:
    if not (stage.rollout.here and stage.actor.here):
        return frozenset()
    held = stage.actor.engine.parameters().values()
    spans = [(p.data_ptr(), p.data_ptr() + p.nbytes) for p in held]
    return frozenset(
        name
        for name, p in stage.rollout.engine._model.named_parameters()
        if any(lo <= p.data_ptr() and p.data_ptr() + p.nbytes <= hi for lo, hi in spans)
    )


def generate_dirty(rank: Rank) -> str:
    """What asking for rollouts between an optimizer step and the sync after it raises."""
    train_step(rank)
    try:
        generate_some(rank)
    except RunError as error:
        return str(error)
    return ""


def _loaded_by_vllm(rank: Rank, stage: Stage, hf: dict[str, Any]) -> dict[str, Tensor]:
    """What vLLM's own loaders make of the full tensors, gathered from all ranks of the actor."""
    live = stage.actor.engine.parameters() if stage.actor.here else {}
    shards = rank.universe.all_gather({name: p.detach().clone() for name, p in live.items()})
    full = full_weights(shards[: stage.case.layout.size], stage.case.layout, hf)
    if not stage.rollout.here:
        return {}
    dtype = getattr(torch, stage.case.rollout_dtype)
    poison(stage)
    stage.rollout.engine._model.load_weights((n, x.to(dtype)) for n, x in full.items())
    stage.rollout.engine.commit(stage.sync.version)
    return snapshot(stage)


def _same_bits(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(a.view(torch.uint8), b.view(torch.uint8))


@contextmanager
def counting(rank: Rank) -> Iterator[list[int]]:
    """Bytes that the transport delivered to this rank as weights."""
    counted, receive = [0], rank.universe.receive

    def counted_receive(tensor: Tensor, source: int, tag: int = 0) -> Any:
        counted[0] += tensor.nbytes if tag == executor.DATA_TAG else 0
        return receive(tensor, source, tag)

    with mock.patch.object(rank.universe, "receive", counted_receive):
        yield counted


def recover(rank: Rank) -> list[tuple[int, ...]]:
    """A sync that is left alone, and what is generated after it."""
    stage: Stage = rank.kept["stage"]
    stage.sync.run()
    return generate_some(rank)


def generate_some(rank: Rank) -> list[tuple[int, ...]]:
    """Two rollouts with prompts long enough to fill blocks of the prefix cache."""
    stage: Stage = rank.kept["stage"]
    long = tuple(range(2, VOCAB_SIZE))
    requests = [RolloutRequest(i, i, Prompt(i, long, "", "", ""), 7 + i) for i in range(2)]
    sampling = SamplingSpec(max_response_length=4)
    done = rollout_engine.generate(stage.rollout.engine, [(requests, sampling)])
    assert {one.weight_version for one in done} == {stage.sync.version}
    return [one.response_ids for one in done]

"""One rank of `megarl bench reshard`: the models, and the rounds over all ways."""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from megarl import native
from megarl.bench.count import counted
from megarl.bench.peak import peak, reset_peak
from megarl.bench.reshard_parts import Way, World, config_json
from megarl.config.schema import Config
from megarl.layout import ReplicaLayout, model_shape_from_hf
from megarl.mesh.layout import MeshLayout
from megarl.mesh.run_plan import RolePlan, RunPlan
from megarl.mesh.universe import Universe
from megarl.reshard.assignment import assign_shards
from megarl.reshard.executor import Resharder
from megarl.reshard.placements import actor_placements, rollout_placements


def measure(
    arguments: argparse.Namespace, layout: MeshLayout, replica: ReplicaLayout
) -> dict[str, Any] | None:
    """Seconds of every way by round, and what else there is to say; on rank 0, None elsewhere."""
    from megarl.train.main import Session

    config, plan = _plan(arguments, layout, replica)
    with Session(plan, config.run) as session:
        from megarl.bench.reshard_ways import all_ways

        plan = assign_shards(plan, session.universe.node_of.__getitem__)
        world = _build(config, plan, session.universe, arguments)
        ways = all_ways(world, arguments.buffer_megabytes << 20)
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        extra = dict.fromkeys(ways, 0)
        packing = []
        messages = dict.fromkeys(ways, 0)
        for index in range(arguments.rounds + 1):
            for name, way in ways.items():
                world.engine.begin_load()
                if not index:  # the first round warms up
                    with counted() as sent:
                        way.run()
                    messages[name] = sent.count
                    continue
                taken, memory = _timed(world.universe, way.run)
                seconds[name].append(taken)
                extra[name] = max(extra[name], memory + way.kept_bytes)
            taken, _ = _timed(world.universe, lambda: world.engine.commit(1))
            packing.append(taken)
        found = _gather(arguments, world, ways, seconds, extra, messages, packing)
        world.engine.close()
    return found if session.universe.rank == 0 else None


def _gather(
    arguments: argparse.Namespace,
    world: World,
    ways: dict[str, Way],
    seconds: dict[str, list[float]],
    extra: dict[str, int],
    messages: dict[str, int],
    packing: list[float],
) -> dict[str, Any]:
    """What all ranks saw; the report of rank 0."""
    own = {name: way.received_bytes for name, way in ways.items()}
    facts = world.universe.all_gather((own, extra, messages))
    received, memory, sent = (
        {name: max(fact[part][name] for fact in facts) for name in ways} for part in range(3)
    )
    report = world.resharder.run(verify=False)
    bounds = world.universe.all_gather((report.bytes_received, report.lower_bound_bytes))
    needed = max(need for _, need in bounds)
    size = sum(p.numel() for p in world.actor.parameters().values())
    total = sum(world.universe.all_gather(size)) / world.run.actor.layout.dp
    layout, replica = world.run.actor.layout, world.run.replica
    return {
        "what": f"{total / 1e6:.0f} M parameters, {arguments.dtype}, {layout.describe()} -> "
        f"{len(world.run.rollout_ranks) // replica.size} x {replica.describe()}, "
        f"{world.universe.size} processes on one node, gloo",
        "ways": {
            name: {
                "seconds": seconds[name],
                "received_bytes": received[name],
                "messages": sent[name],
                "to_bound": received[name] / needed if needed else 1.0,
                "extra_bytes": memory[name],
            }
            for name in ways
        },
        "beside": {
            "vLLM packs its layers again, s": statistics.median(packing),
            "bytes received / lower bound": max(
                got / need if need else 1.0 + got for got, need in bounds
            ),
            "rounds": float(report.rounds),
        },
    }


def _timed(universe: Universe, work: Callable[[], object]) -> tuple[float, int]:
    """Seconds of the slowest rank, and bytes by which memory grew at its peak here."""
    universe.barrier()
    before = reset_peak()
    started = time.perf_counter()
    work()
    taken = time.perf_counter() - started
    grown = peak() - before
    return max(universe.all_gather(taken)), max(grown, 0)


def _plan(
    arguments: argparse.Namespace, layout: MeshLayout, replica: ReplicaLayout
) -> tuple[Config, RunPlan]:
    config, folder = Config(), arguments.folder
    config.run.dir = str(folder / "run")
    config.actor.model.dtype = arguments.dtype
    config.rollout.kv_cache_megabytes, config.rollout.max_num_batched_tokens = 16, 512
    config.data.max_prompt_length = config.data.max_response_length = 64
    hf = config_json(arguments)
    shape = model_shape_from_hf(hf, tp=layout.tp)
    ranks = tuple(range(arguments.ranks))
    actor = RolePlan(ranks, layout, shape, str(folder), hf)
    return config, RunPlan(arguments.ranks, actor, None, None, None, ranks, replica)


def _build(
    config: Config, plan: RunPlan, universe: Universe, arguments: argparse.Namespace
) -> World:
    from megarl.mesh.role_mesh import GroupFactory, RoleMesh
    from megarl.models.engine import MegatronEngine
    from megarl.train.build_rollout import make_rollout

    if universe.rank == 0:
        (arguments.folder / "config.json").write_text(json.dumps(plan.actor.hf))
    universe.barrier()
    dtype = getattr(torch, arguments.dtype)
    mesh = RoleMesh("actor", plan.actor.layout, GroupFactory(config.run.timeout_s))
    actor = MegatronEngine(plan.actor.hf, plan.actor.shape, mesh, dtype)
    generator = torch.Generator().manual_seed(universe.rank)
    for parameter in actor.parameters().values():
        parameter.data.normal_(generator=generator)
    rollout = make_rollout(config, plan, universe, None, plan.actor.path)
    layout, ranks = plan.actor.layout, plan.actor.ranks
    own = native.plan(
        actor_placements(plan.actor.shape, layout, ranks),
        rollout_placements(plan.actor.shape, plan.replica, plan.rollout_ranks),
        node_of=universe.node_of.__getitem__,
        rank=universe.rank,
    )
    resharder = Resharder(
        universe,
        own,
        actor.parameters(),
        dict(rollout.resident.begin_load()),
        wire_dtype=dtype,
        buffer_bytes=arguments.buffer_megabytes << 20,
    )
    return World(universe, plan, actor, rollout.resident, resharder, dtype)

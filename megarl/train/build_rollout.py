"""Builds what generates, in this job or on servers, and the way of the actor's weights to it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from megarl.config.schema import Config
from megarl.data.order import PromptOrder
from megarl.environments.episodes import EpisodeSettings
from megarl.environments.load import load_environment
from megarl.layout import ReplicaLayout
from megarl.mesh.control import Control
from megarl.mesh.run_plan import RunPlan
from megarl.mesh.universe import Pool, Universe
from megarl.models.transformer_config import torch_dtype
from megarl.roles.actor import Actor
from megarl.roles.canary import CANARY_LIMIT, CanaryText
from megarl.roles.rollout import RolloutRole
from megarl.roles.server_sync import ServerSync, ServerSyncSettings
from megarl.roles.weight_sync import SyncSettings, WeightSync
from megarl.rollout.factory import build_engine
from megarl.rollout.vllm_engine import VllmSettings
from megarl.train.ahead import Ahead, Pace
from megarl.types import Prompt, SamplingSpec

Decode = Callable[[Sequence[int]], str]
CLIENT = 0
"""Universe rank that asks the servers: it keeps the books too."""


def decoder(tokenizer: Any) -> Decode:
    """Token ids of a response -> its text, as engines and rewards see it."""

    def decode(ids: Sequence[int]) -> str:
        return str(tokenizer.decode(ids, skip_special_tokens=True))

    return decode


def make_rollout(
    config: Config, plan: RunPlan, universe: Universe, tokenizer: Any, model_path: str
) -> RolloutRole:
    """The rollout role with this rank's engine.

    Servers that the run starts itself answer when this returns; one rank asks them.
    """
    settings = vllm_settings(config, plan, universe, model_path)
    episodes = _episodes(config, tokenizer)
    if not plan.rollout_ranks:
        engine = None
        if universe.rank == CLIENT:
            engine = _server_engine(config, settings, universe, decoder(tokenizer))
        return RolloutRole(universe, Pool("client", (CLIENT,)), ReplicaLayout(), engine, episodes)
    pool = universe.pool_of(plan.rollout_ranks)
    if universe.pool != pool:
        return RolloutRole(universe, pool, plan.replica, None)
    index, decode = pool.ranks.index(universe.rank), decoder(tokenizer)
    resident = build_engine(config.rollout.engine, settings, plan.actor.shape, index, decode)
    return RolloutRole(universe, pool, plan.replica, resident, episodes)


def _episodes(config: Config, tokenizer: Any) -> EpisodeSettings | None:
    """Of several turns; None where nothing answers the model."""
    settings = config.environment
    make = load_environment(settings)
    if make is None:
        return None

    def encode(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    return EpisodeSettings(
        make=make,
        encode=encode,
        name=str(settings.function),
        max_turns=settings.max_turns,
        turn_timeout_s=settings.turn_timeout_s,
        workers=settings.workers,
    )


def vllm_settings(
    config: Config, plan: RunPlan, universe: Universe, model_path: str
) -> VllmSettings:
    """What each replica is built with."""
    rollout = config.rollout
    return VllmSettings(
        model=model_path,
        run_name=universe.launch.run_id,
        replica=plan.replica,
        dtype=rollout.dtype or config.actor.model.dtype,
        max_model_len=config.data.max_prompt_length + config.data.max_response_length,
        kv_cache_bytes=rollout.kv_cache_megabytes << 20,
        gpu_memory_utilization=rollout.gpu_memory_utilization,
        max_num_seqs=rollout.max_num_seqs,
        max_num_batched_tokens=rollout.max_num_batched_tokens,
        enforce_eager=rollout.enforce_eager,
        enable_sleep_mode=rollout.enable_sleep_mode,
        seed=config.run.seed,
        engine_args=dict(rollout.engine_args),
    )


def _server_engine(
    config: Config, settings: VllmSettings, universe: Universe, decode: Decode
) -> Any:
    """The client of the servers; it may need packages that other engines do not."""
    from megarl.rollout.servers.client import ClientOptions
    from megarl.rollout.servers.engine import ServerEngine
    from megarl.rollout.servers.launch import LaunchedServers, LaunchOptions
    from megarl.rollout.servers.pool import ListedServers, NamedServers, ServerSource

    rollout = config.rollout
    source: ServerSource
    if rollout.launch.replicas:
        options = LaunchOptions(
            replicas=rollout.launch.replicas,
            folder=Path(config.run.dir) / "servers",
            first_gpu=universe.launch.local_world_size,
            ready_timeout_s=rollout.launch.ready_timeout_s,
            srun=None if rollout.launch.srun is None else tuple(rollout.launch.srun),
        )
        source = LaunchedServers(settings, options)
    elif rollout.servers_file:
        source = ListedServers(Path(rollout.servers_file))
    else:
        source = NamedServers(rollout.servers)
    source.wait()
    return ServerEngine(source, ClientOptions(**asdict(rollout.client)), decode)


def make_ahead(
    config: Config,
    rollout: RolloutRole,
    prompts: Sequence[Prompt],
    order: PromptOrder,
    sampling: SamplingSpec,
) -> Ahead | None:
    """What servers make for steps to come; None where nothing is."""
    data, staleness = config.data, config.rollout.max_staleness
    if not staleness:
        return None
    pace = Pace(
        batch=data.rollout_batch_size,
        num_samples=data.n_samples_per_prompt,
        max_staleness=staleness,
        steps=config.run.steps,
        seed=config.run.seed,
    )
    lane = rollout.servers.lane() if rollout.here else None
    return Ahead(pace, prompts, order, sampling, lane)


def make_weight_sync(
    config: Config,
    plan: RunPlan,
    universe: Universe,
    control: Control,
    actor: Actor,
    rollout: RolloutRole,
    prompts: Sequence[Prompt],
) -> WeightSync | ServerSync:
    """The way from the actor to what generates; the first prompts are the canary."""
    wire = torch_dtype(config.rollout.dtype or config.actor.model.dtype)
    computed = wire, torch_dtype(config.actor.model.dtype)
    canary_limit = max(CANARY_LIMIT[dtype] for dtype in computed)
    ours = universe, control, plan.actor.shape, actor, rollout
    if not plan.rollout_ranks:
        return ServerSync(
            *ours,
            ServerSyncSettings(
                wire_dtype=wire,
                buffer_bytes=config.weight_sync.buffer_megabytes << 20,
                replica=plan.replica,
                timeout_s=universe.timeout.total_seconds() / 2,
                patience_s=config.rollout.client.patience_s,
                overlap=config.weight_sync.communication_overlap,
                pause_mode="keep" if config.rollout.partial_rollout else "wait",
                max_staleness=config.rollout.max_staleness,
                canary=_canary(config, prompts),
                canary_limit=canary_limit,
            ),
        )
    return WeightSync(
        *ours,
        SyncSettings(
            wire_dtype=wire,
            buffer_bytes=config.weight_sync.buffer_megabytes << 20,
            overlap=config.weight_sync.communication_overlap,
            verify_interval=config.weight_sync.verify_interval,
            strict=config.weight_sync.strict,
            alias=config.weight_sync.alias,
            canary=_canary(config, prompts),
            canary_limit=canary_limit,
        ),
    )


def _canary(config: Config, prompts: Sequence[Prompt]) -> CanaryText | None:
    """At most 16 tokens of the first prompts, text that the models know; None below two."""
    tokens = [token for prompt in prompts[:16] for token in prompt.token_ids]
    longest = config.data.max_prompt_length + config.data.max_response_length - 1
    tokens = tokens[: min(16, longest)]
    return CanaryText(tuple(tokens)) if config.weight_sync.canary and len(tokens) > 1 else None

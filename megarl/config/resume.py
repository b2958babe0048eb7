"""May a run go on with these settings? What decides its numbers must be what it was."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from megarl.config.keys import flatten
from megarl.config.save import saved_command
from megarl.config.schema import Config
from megarl.errors import ConfigError

FREE = (
    "run.steps", "run.eval_interval", "run.timeout_s", "run.stall_timeout_s", "run.export",
    "run.world_size", "run.dir", "resources", "checkpoint", "observe", "weight_sync", "evaluation",
    "actor.mesh", "critic.mesh", "reference.mesh", "reward.mesh",
    "actor.optimizer.optimizer_offload", "critic.optimizer.optimizer_offload",
    "actor.optimizer.grad_offload", "critic.optimizer.grad_offload",
    "actor.optimizer.overlap_grad_reduce", "critic.optimizer.overlap_grad_reduce",
    "actor.model.recompute_granularity", "critic.model.recompute_granularity",
    "reference.model.recompute_granularity", "reward.model.recompute_granularity",
    "rollout.tensor_parallel_size", "rollout.pipeline_parallel_size",
    "rollout.enable_expert_parallel", "rollout.kv_cache_megabytes",
    "rollout.gpu_memory_utilization", "rollout.enforce_eager", "rollout.enable_sleep_mode",
    "data.indexed.cache_dir", "reward.overlap",
)  # fmt: skip
"""Keys, with all below them, that may differ: how far, where and how fast the run goes. How far is
not free where a learning rate decays over the whole run."""


def check_same_run(saved: Path, config: Config, command: str) -> None:
    """ConfigError, with the first differences, where `saved` holds the settings of another run.

    saved: the resolved settings in the run folder; a setting that it does not know had what is the
    default now. Raises ConfigError too where it cannot be read, or another command ran there.
    """
    try:
        text = saved.read_text()
        before = flatten(yaml.safe_load(text) or {})
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(
            f"{saved} cannot be read ({error}), so that the run there cannot go on: take another "
            "run.dir, or set checkpoint.resume_mode=never"
        ) from None
    ran = saved_command(text)
    if ran not in ("", command):
        raise ConfigError(
            f"{saved.parent} holds a run of `megarl {ran}`, and this is `megarl {command}`: take "
            "another run.dir, or set checkpoint.resume_mode=never to start anew"
        )
    now = flatten(dataclasses.asdict(config))
    before = flatten(dataclasses.asdict(Config())) | before
    different = [
        f"{key} was {_shown(before, key)} and is {_shown(now, key)}"
        for key in sorted(now)
        if before.get(key) != now[key] and not _is_free(key)
    ]
    different += _decays_over_the_run(before, now)
    if different:
        more = f" (and {len(different) - 3} more)" if len(different) > 3 else ""
        raise ConfigError(
            f"{saved.parent} holds a run with other settings: {'; '.join(different[:3])}{more}; "
            "give the same, take another run.dir, or set checkpoint.resume_mode=never to start "
            "anew (the earlier records are set aside)"
        )


def _decays_over_the_run(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Where the learning rate depends on how many steps the run has in all, and they differ."""
    steps = "run.steps"
    roles = [
        role
        for role in ("actor", "critic")
        if now[f"{role}.optimizer.lr_decay_style"] != "constant"
        and now[f"{role}.optimizer.lr_decay_steps"] is None
    ]
    if before.get(steps) == now[steps] or not roles:
        return []
    return [
        f"{steps} was {_shown(before, steps)} and is {now[steps]}, and {roles[0]}.optimizer.lr "
        "decays over the whole run (lr_decay_steps is null)"
    ]


def _is_free(key: str) -> bool:
    return any(key == free or key.startswith(free + ".") for free in FREE)


def _shown(values: Mapping[str, Any], key: str) -> str:
    return repr(values[key]) if key in values else "not there"

"""The whole validation: settings, then meshes, then files."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from megarl.config.schema import Config
from megarl.errors import ConfigError
from megarl.mesh.run_plan import RunPlan
from megarl.validate.batches import check_groups, check_lengths, check_micro_batches, check_replicas
from megarl.validate.choices import check_names, check_numbers
from megarl.validate.contradictions import (
    check_alias,
    check_contradictions,
    check_schedule,
)
from megarl.validate.engines import check_engine, check_machine, check_script
from megarl.validate.environments import check_environment
from megarl.validate.evaluation import check_best_metric, check_evaluation
from megarl.validate.files import check_data, check_folders, check_run_folder
from megarl.validate.indexed import check_sample_length
from megarl.validate.meshes import make_plan
from megarl.validate.models import read_models
from megarl.validate.rewards import check_rewards
from megarl.validate.servers import check_servers, check_servers_here

Purpose = Literal["train", "pretrain", "sft", "reward", "eval"]
SUPERVISED = ("pretrain", "sft", "reward")
"""What learns from examples: without rollouts, critic or reference."""
MACHINE = "device and engines"
"""What only the machine of the run can tell."""


def validate(
    config: Config,
    world_size: int,
    purpose: Purpose = "train",
    *,
    files: bool = True,
    machine: bool = True,
) -> RunPlan:
    """Check a config for a run of `world_size` processes; returns what it amounts to.

    `files` False leaves out what reads checkpoints, data and rewards (config.json is always read),
    `machine` False what depends on this machine's device and packages: for processes whose parent
    has looked, and for runs elsewhere. `resources` counts for training only. ConfigError or
    DataError, with the key, the numbers and the cure, at the first thing that is wrong.
    """
    check_names(config)
    check_numbers(config)
    if purpose == "train":
        check_contradictions(config)
        check_groups(config)
    if purpose in SUPERVISED:
        named = config.resources.get("actor_gpus", list(range(world_size)))
        if sorted(named) != list(range(world_size)):
            raise ConfigError(
                f"resources.actor_gpus is {list(named)}, and {world_size} ranks are started, on "
                "all of which this command trains its role: leave it out, and give run.world_size"
            )
        check_schedule(config.actor.optimizer, "actor")
        check_micro_batches(config, purpose)
    if purpose not in SUPERVISED:
        check_rewards(config)
        check_evaluation(config)
    if purpose != "eval":
        check_best_metric(config, purpose)
    models = read_models(config, purpose)
    plan = make_plan(config, models, world_size, purpose)
    if purpose == "train":
        check_replicas(config, plan)
        check_alias(config, plan)
    if purpose == "pretrain":
        check_sample_length(config, plan)
    else:
        if purpose in SUPERVISED and not config.data.train_path and config.data.indexed.blend:
            raise ConfigError(
                "data.train_path is empty and data.indexed.blend is given: this is a config of "
                f"`megarl pretrain`; `megarl {purpose}` reads a .jsonl or .parquet file"
            )
        check_lengths(config, plan)
    if purpose not in SUPERVISED:
        check_engine(config)
        check_servers(config)
        check_environment(config, plan)
    if machine:
        check_machine(config, plan, purpose)
    if files:
        if purpose not in SUPERVISED:
            check_script(config)
            check_servers_here(config)
        check_run_folder(config)
        check_folders(config, plan, purpose)
        check_data(config, plan, purpose)
    return plan


def validate_elsewhere(
    config: Config, world_size: int, purpose: Purpose = "train", *, files: bool = True
) -> tuple[RunPlan, list[str]]:
    """The checks of `validate` for a run on other machines; what they amount to, and what is left.

    Files are read where the actor's weights lie, unless `files` is False; this machine's device and
    packages say nothing.
    """
    plan = validate(config, world_size, purpose, files=False, machine=False)
    has_weights = config.actor.model.fresh or any(Path(plan.actor.path).glob("*.safetensors*"))
    left = [MACHINE]
    if not files or not has_weights:
        cause = "" if has_weights else f" ({plan.actor.path} has no weights)"
        return plan, [f"weights, tokenizer, data{cause}", *left]
    return validate(config, world_size, purpose, machine=False), left

"""The whole validation: settings, then meshes, then files."""

from __future__ import annotations

from typing import Literal

from megarl.config.schema import Config
from megarl.mesh.run_plan import RunPlan
from megarl.validate.batches import check_groups, check_lengths, check_micro_batches, check_replicas
from megarl.validate.choices import check_names, check_numbers
from megarl.validate.contradictions import check_alias, check_contradictions, check_schedule
from megarl.validate.engines import check_device, check_engine, check_logger
from megarl.validate.files import check_data, check_folders, check_run_folder
from megarl.validate.indexed import check_sample_length
from megarl.validate.meshes import make_plan
from megarl.validate.models import read_models

Purpose = Literal["train", "pretrain", "sft", "reward", "eval"]
SUPERVISED = ("pretrain", "sft", "reward")
"""What learns from examples: without rollouts, critic or reference."""


def validate(
    config: Config, world_size: int, purpose: Purpose = "train", *, files: bool = True
) -> RunPlan:
    """Check a config for a run of `world_size` processes; returns what it amounts to.

    `files` False leaves out what reads checkpoints, data and rewards (config.json is always read):
    for processes whose parent has looked. `resources` counts for training only. ConfigError or
    DataError, with the key, the numbers and the cure, at the first thing that is wrong.
    """
    check_device()
    check_names(config)
    check_numbers(config)
    if purpose == "train":
        check_contradictions(config)
        check_groups(config)
    if purpose in SUPERVISED:
        check_schedule(config.actor.optimizer, "actor")
        check_micro_batches(config, purpose)
    models = read_models(config, purpose)
    plan = make_plan(config, models, world_size, purpose)
    if purpose == "train":
        check_replicas(config, plan)
        check_alias(config, plan)
    if purpose == "pretrain":
        check_sample_length(config, plan)
    else:
        check_lengths(config, plan)
    if files:
        if purpose not in SUPERVISED:
            check_engine(config)
        check_logger(config)
        check_run_folder(config)
        check_folders(config, plan, purpose)
        check_data(config, plan, purpose)
    return plan

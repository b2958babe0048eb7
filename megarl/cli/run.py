"""A run from the command line: settings, checks, then this process or one per rank."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from megarl.checkpoint.earlier import RESOLVED, check_folder
from megarl.checkpoint.folder import goes_on, saves
from megarl.cli.output import complain, tell
from megarl.config.load import LoadedConfig, load_with_origins
from megarl.config.resources import wanted_world_size
from megarl.config.save import save_resolved
from megarl.config.schema import Config
from megarl.errors import ConfigError, MegaRLError
from megarl.observe.records import set_aside
from megarl.runtime.aside import sole_use

MODULE = "megarl.cli.main"
"""What the ranks of a local start run."""
LOST_LOCK_S = 150.0
"""Seconds for which a file server may hold the lock of a node that was lost."""

ENTRIES = {
    "train": ("megarl.train.main", "run_training"),
    "pretrain": ("megarl.train.main", "run_pretraining"),
    "sft": ("megarl.train.main", "run_sft"),
    "reward": ("megarl.train.main", "run_reward_model"),
    "eval": ("megarl.train.main", "run_eval"),
}


def run(
    command: str,
    path: str,
    overrides: Sequence[str],
    *,
    dry_run: bool = False,
    ranks_per_node: int | None = None,
) -> int:
    """`megarl train|pretrain|sft|reward|eval CONFIG [a.b=c ...]`; returns the exit status.

    Under a launcher this process is one rank. Alone it checks everything, then is the only rank
    itself or starts all of them.
    """
    loaded = load_with_origins(path, overrides)
    if command == "eval":  # beside the records of the run whose config this may be
        loaded.config.run.dir = str(Path(loaded.config.run.dir) / "eval")
    # torch is imported from here on: a wrong key is told without that second.
    from megarl.runtime import spawn
    from megarl.runtime.environment import this_launch

    launch = this_launch()
    alone = launch.launcher == "alone"
    config = loaded.config
    wanted = wanted_world_size(config, use_resources=command == "train")
    world_size = wanted if alone else launch.world_size
    try:
        return _run(
            command, loaded, world_size, alone=alone, dry_run=dry_run,
            ranks_per_node=ranks_per_node, arguments=[command, path, *overrides],
        )  # fmt: skip
    except ConfigError as error:
        # All ranks of a node find the same: one of them says it.
        if spawn.speaks(launch):
            raise
        return error.exit_code


def _run(
    command: str,
    loaded: LoadedConfig,
    world_size: int,
    *,
    alone: bool,
    dry_run: bool,
    ranks_per_node: int | None,
    arguments: Sequence[str],
) -> int:
    from megarl.runtime import spawn
    from megarl.runtime.environment import slurm_step, this_launch
    from megarl.runtime.requeue import hold_signals
    from megarl.validate import validate

    config = loaded.config
    checked = spawn.is_checked()
    launch = this_launch()
    first = launch.rank == 0
    if dry_run:
        text = _dry_run(config, world_size, command, ranks_per_node or world_size)
        if first:
            sys.stdout.write(text)
        return 0
    purpose: Any = command
    plan = validate(config, world_size, purpose, files=not checked, machine=not checked)
    # After a node was lost its lock may be held for a while.
    wait_s = LOST_LOCK_S if slurm_step() is not None else 0.0
    held = sole_use(Path(config.run.dir), "run.dir", wait_s)
    with held if first and not checked else nullcontext():
        if first and not checked:
            _save(command, loaded, [role.path for role in plan.roles.values()])
        if command != "eval":
            hold_signals()
        if alone and world_size > 1:
            tell(f"starting {world_size} ranks on this machine")
            return spawn.spawn(arguments, world_size, complain, module=MODULE, saves=saves(config))
        if checked:
            spawn.die_with_parent()
        else:
            spawn.limit_threads(launch)
        return _entry(command, config, plan)


def _dry_run(config: Config, world_size: int, command: str, ranks_per_node: int) -> str:
    """What the run would be, on this machine or on others, and what could not be checked here."""
    from megarl.cli.memory import describe_memory, describe_traffic
    from megarl.cli.meshes import describe_plan
    from megarl.validate import validate_elsewhere

    plan, left = validate_elsewhere(config, world_size, command)  # type: ignore[arg-type]
    check_folder(command, config)
    lines = describe_memory(config, plan, command)
    if command == "train":
        lines += describe_traffic(config, plan, ranks_per_node)
    lines.append(f"not checked here: {', '.join(left)}")
    return describe_plan(config, plan, ranks_per_node, command, lines)


def _save(command: str, loaded: LoadedConfig, inputs: Sequence[str]) -> None:
    """Keep the settings in the run folder, and set an earlier run's records aside."""
    config, folder = loaded.config, Path(loaded.config.run.dir)
    check_folder(command, config)
    try:
        continues = command != "eval" and goes_on(config)
        aside = None if continues else set_aside(folder, inputs)
        save_resolved(config, loaded.origins, folder / RESOLVED, command)
    except OSError as error:
        raise ConfigError(
            f"run.dir {folder} cannot be written: {error.strerror or error}: give another folder"
        ) from None
    if aside is not None:
        tell(f"{folder} held an earlier run; its records are in {aside}")


def _entry(command: str, config: Config, plan: object) -> int:
    module, name = ENTRIES[command]
    entry = getattr(importlib.import_module(module), name, None)
    if entry is None:
        raise MegaRLError(f"megarl {command} is not part of this installation")
    return int(entry(config, plan) or 0)

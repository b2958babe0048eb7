"""A run from the command line: settings, checks, then this process or one per rank."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

from megarl.checkpoint.folder import check_readable, goes_on, saves
from megarl.cli.output import complain, tell
from megarl.config.load import LoadedConfig, load_with_origins
from megarl.config.resources import wanted_world_size
from megarl.config.resume import check_same_run
from megarl.config.save import save_resolved
from megarl.config.schema import Config
from megarl.errors import ConfigError, MegaRLError
from megarl.observe.records import set_aside

MODULE = "megarl.cli.main"
"""What the ranks of a local start run."""
RESOLVED = "config.yaml"
"""Settings of the run with their origins, in the run folder."""

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
    from megarl.runtime.environment import this_launch
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
    plan = validate(config, world_size, command, files=not checked)  # type: ignore[arg-type]
    if first and not checked:
        _save(loaded, continues=command != "eval" and goes_on(config))
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
    """What the run would be; where the actor's weights are elsewhere, so are data and engines."""
    from megarl.cli.memory import describe_memory, describe_traffic
    from megarl.cli.meshes import describe_plan
    from megarl.validate import validate

    plan = validate(config, world_size, command, files=False)  # type: ignore[arg-type]
    actor = Path(plan.actor.path)
    here = config.actor.model.fresh or any(actor.glob("*.safetensors*"))
    if here:
        validate(config, world_size, command)  # type: ignore[arg-type]
    lines = describe_memory(config, plan, command)
    if command == "train":
        lines += describe_traffic(config, plan, ranks_per_node)
    if not here:
        lines.append(f"not checked here: weights, tokenizer, data, engine ({actor} has no weights)")
    return describe_plan(config, plan, ranks_per_node, command, lines)


def _save(loaded: LoadedConfig, *, continues: bool) -> None:
    folder = Path(loaded.config.run.dir)
    if continues:
        check_same_run(folder / RESOLVED, loaded.config)
        check_readable(loaded.config)
    try:
        aside = None if continues else set_aside(folder)
        save_resolved(loaded.config, loaded.origins, folder / RESOLVED)
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

"""What `megarl submit` was asked for, checked by itself."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from megarl.errors import ConfigError

_TIME = re.compile(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?")


@dataclass(frozen=True, slots=True)
class Resources:
    """What one job gets."""

    nodes: int
    gpus_per_node: int
    tasks_per_node: int | None
    """Ranks of a node, where it has no GPUs."""
    cpus_per_node: int | None
    time: str | None
    partition: str | None

    @property
    def ranks_per_node(self) -> int:
        """One per GPU, or as many as were asked for."""
        return self.gpus_per_node or self.tasks_per_node or 0

    def with_own(self, own: Mapping[str, Any]) -> Resources:
        """These, with what a stage has for itself; its GPUs and tasks exclude each other."""
        changes = dict(own)
        if "gpus_per_node" in own and "tasks_per_node" not in own and own["gpus_per_node"]:
            changes["tasks_per_node"] = None
        return replace(self, **changes)


def check_resources(resources: Resources, save_s: int, where: str) -> None:
    """ConfigError, naming option and number, for what no job could have."""
    for name in ("nodes", "gpus_per_node", "tasks_per_node", "cpus_per_node"):
        value, least = getattr(resources, name), 0 if name == "gpus_per_node" else 1
        if value is not None and (not isinstance(value, int) or value < least):
            option = "--" + name.replace("_", "-")
            raise ConfigError(f"{where}{option} is {value!r}: give a number of at least {least}")
    if resources.gpus_per_node and resources.tasks_per_node:
        raise ConfigError(
            f"{where}--tasks-per-node {resources.tasks_per_node} beside --gpus-per-node "
            f"{resources.gpus_per_node}: with GPUs there is one rank for each; leave it out"
        )
    if not resources.ranks_per_node:
        raise ConfigError(
            f"{where}--gpus-per-node is 0: say how many ranks a node has, with --tasks-per-node"
        )
    limit = None if resources.time is None else seconds_of(resources.time, where)
    if limit is not None and limit <= save_s:
        raise ConfigError(
            f"{where}--time {resources.time} is {limit} s, and --save-seconds {save_s}: the job "
            "would be told to save when it starts; give more time, or fewer seconds"
        )


def seconds_of(text: str, where: str = "") -> int:
    """Seconds of a time limit as sbatch takes it: M, M:S, H:M:S, D-H, D-H:M, D-H:M:S."""
    match = _TIME.fullmatch(str(text))
    if match is None:
        raise ConfigError(
            f"{where}--time is {text!r}: write minutes, hours:minutes:seconds or days-hours"
        )
    days, *rest = match.groups()
    parts = [int(part) for part in rest if part is not None]
    if days is not None:
        hours, minutes, seconds = (*parts, 0, 0)[:3]
    elif len(parts) == 3:
        hours, minutes, seconds = parts
    else:
        hours, (minutes, seconds) = 0, (*parts, 0)[:2]
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds


def build_parser() -> argparse.ArgumentParser:
    """The arguments of `megarl submit`."""
    parser = argparse.ArgumentParser(
        prog="megarl submit",
        description="Write a batch script per stage into the run folder and submit them as a "
        "chain of SLURM jobs. A job saves before its time is up and requeues itself; what is done "
        "is left out when the same command is given again.",
    )
    add = parser.add_argument
    add("file", metavar="PIPELINE_OR_CONFIG", help="a file with stages, or the config of one run")
    add("overrides", nargs="*", metavar="a.b=c", help="as for `megarl pipeline`, or for the run")
    add("--command", help="for a config: what megarl runs with it (default: train)")
    add("--dir", metavar="D", help="for a pipeline: where all stages write")
    add("--nodes", type=int, required=True, metavar="N", help="of every stage but `run:` ones")
    add("--gpus-per-node", type=int, required=True, metavar="G", help="one rank each; 0: on CPUs")
    add("--tasks-per-node", type=int, metavar="K", help="ranks of a node, where G is 0")
    add("--cpus-per-node", type=int, metavar="C", help="cores for all ranks of a node together")
    add("--time", help="limit of each job, as sbatch takes it; a job goes on after it")
    add(
        "--save-seconds",
        type=int,
        default=300,
        metavar="S",
        help="so long before the limit a job saves and requeues itself (default: %(default)s)",
    )
    add("--partition", help="of all jobs")
    add("--account", help="of all jobs")
    add("--container-image", metavar="IMAGE", help="for srun, where Pyxis is installed")
    add("--container-mounts", metavar="FROM:TO,...", help="for srun, beside it")
    add(
        "--env-file",
        type=Path,
        metavar="FILE",
        help="shell file that each job sources: modules, NCCL's variables, MASTER_ADDR",
    )
    add(
        "--sbatch",
        action="append",
        default=[],
        metavar="OPTION",
        help="one more option for sbatch, such as --sbatch=--qos=high; may be repeated",
    )
    add("--dry-run", action="store_true", help="check everything, print the scripts, stop")
    return parser  # fmt: skip

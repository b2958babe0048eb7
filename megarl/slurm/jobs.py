"""From the stages of a pipeline, or one config, to batch jobs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from megarl.config.keys import flatten
from megarl.config.layers import override_layers
from megarl.config.load import load_with_origins
from megarl.errors import ConfigError
from megarl.pipeline.runner import command_line
from megarl.pipeline.spec import Pipeline, Stage, load_pipeline
from megarl.slurm.options import Resources, check_resources
from megarl.slurm.script import Job

SCRIPTS = "slurm"
"""Folder of the scripts and of what the jobs print, in the pipeline's or the run's."""


def read_work(parsed: argparse.Namespace, commands: Sequence[str]) -> tuple[Pipeline, bool]:
    """The pipeline, or a config as one of a single stage; whether it is a pipeline."""
    file = Path(parsed.file)
    if file.is_file() and _has_stages(file):
        if parsed.command is not None:
            raise ConfigError(
                f"--command {parsed.command} is for the config of one run, and {file} is a "
                "pipeline, whose stages say theirs: leave it out"
            )
        made = load_pipeline(file, parsed.overrides, folder=parsed.dir, commands=commands)
        return made, True
    command = parsed.command or "train"
    if command not in commands:
        raise ConfigError(f"--command is {command!r}: one of {', '.join(commands)}")
    if parsed.dir is not None:
        raise ConfigError("--dir is for pipelines: give run.dir=... for the config of one run")
    loaded = load_with_origins(file, parsed.overrides)
    folder = Path(loaded.config.run.dir)
    layers = override_layers(parsed.overrides)
    values = {key: value for layer in layers for key, value in flatten(layer.values).items()}
    stage = Stage(command, folder, command, file, values)
    return Pipeline(folder.name, file, folder, loaded.config.run.seed, (stage,)), False


def _has_stages(file: Path) -> bool:
    try:
        loaded = OmegaConf.load(file)
    except (yaml.YAMLError, OmegaConfBaseException, UnicodeDecodeError, OSError):
        # What is wrong with it is said by whoever loads it in earnest.
        return False
    return OmegaConf.is_dict(loaded) and "stages" in loaded


def resources_of(pipeline: Pipeline, parsed: argparse.Namespace) -> dict[str, Resources]:
    """What each stage gets; ConfigError, naming the stage, for what no job could have."""
    if parsed.save_seconds < 1:
        raise ConfigError(f"--save-seconds is {parsed.save_seconds}: give 1 or more")
    common = Resources(
        parsed.nodes, parsed.gpus_per_node, parsed.tasks_per_node, parsed.cpus_per_node,
        parsed.time, parsed.partition,
    )  # fmt: skip
    check_resources(common, parsed.save_seconds, "")
    found = {}
    for stage in pipeline.stages:
        usual = common
        if stage.command is None:  # one process, which no rank waits for
            usual = Resources(1, 0, 1, None, parsed.time, parsed.partition)
        own = usual.with_own(stage.slurm)
        check_resources(own, parsed.save_seconds, f"stage {stage.name}: ")
        found[stage.name] = own
    return found


def make_jobs(
    pipeline: Pipeline,
    resources: Mapping[str, Resources],
    parsed: argparse.Namespace,
    *,
    is_pipeline: bool,
) -> dict[str, Job]:
    """The job of every stage."""
    folder = pipeline.folder.absolute()
    jobs = {}
    for stage in pipeline.stages:
        own = resources[stage.name]
        name = f"{pipeline.name}-{stage.name}" if is_pipeline else pipeline.name
        jobs[stage.name] = Job(
            name=name,
            title=_title(pipeline, stage, is_pipeline),
            nodes=own.nodes,
            ranks_per_node=own.ranks_per_node,
            gpus_per_node=own.gpus_per_node,
            time=own.time,
            save_s=parsed.save_seconds,
            words=_words(stage),
            launched=stage.command is not None,
            python="python" if parsed.container_image else sys.executable,
            host_python=sys.executable,
            workdir=Path.cwd(),
            # sbatch would replace what follows a % of the folder's own.
            output=Path(str(folder).replace("%", "%%")) / SCRIPTS / f"{stage.name}-%j.out",
            partition=own.partition,
            account=parsed.account,
            cpus_per_node=own.cpus_per_node,
            container_image=parsed.container_image,
            container_mounts=parsed.container_mounts,
            env_file=None if parsed.env_file is None else parsed.env_file.absolute(),
            sbatch_options=tuple(parsed.sbatch),
            mark=(str(folder), stage.name) if is_pipeline else None,
        )
    return jobs


def _words(stage: Stage) -> tuple[str, ...]:
    if stage.command is None:
        return tuple(command_line(stage))
    return ("megarl.cli.main", *stage.words())


def _title(pipeline: Pipeline, stage: Stage, is_pipeline: bool) -> str:
    if is_pipeline:
        return f"Stage {stage.name} of {pipeline.file}, written by `megarl submit`."
    return f"megarl {stage.command} {pipeline.file}, written by `megarl submit`."

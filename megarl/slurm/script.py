"""The text of a batch script: one stage, one job, one launcher per node."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from megarl.errors import ConfigError
from megarl.pipeline.mark import DONE_BEFORE

LAUNCHER = "megarl.slurm.node"
WAIT_S = 120
"""Once the first node's launcher has left, so long the others may take."""


@dataclass(frozen=True, slots=True)
class Job:
    """What one batch job is to be."""

    name: str
    title: str
    """First line of the script."""
    nodes: int
    ranks_per_node: int
    gpus_per_node: int
    """0: none are asked for."""
    time: str | None
    """Limit, as sbatch takes it; None: the partition's."""
    save_s: int
    """Seconds before the limit at which the ranks are told to save and leave."""
    words: tuple[str, ...]
    """What the launcher starts (after `-m`), or a command that runs once."""
    launched: bool
    """Whether `words` run as ranks."""
    python: str
    """Of the launcher: inside the container, where there is one."""
    host_python: str
    """Of the batch script itself."""
    workdir: Path
    output: Path
    """Of the job; %j is its id."""
    partition: str | None = None
    account: str | None = None
    cpus_per_node: int | None = None
    container_image: str | None = None
    container_mounts: str | None = None
    env_file: Path | None = None
    sbatch_options: tuple[str, ...] = ()
    mark: tuple[str, str] | None = None
    """Folder of the pipeline and name of the stage, where its state is written down."""


def script(job: Job) -> str:
    """The whole script; ConfigError for a name that no line of it can hold."""
    lines = ["#!/bin/bash", f"# {_one_line(job.title)}", *_options(job), "", "set -uo pipefail"]
    lines.append(f"cd {shlex.quote(str(job.workdir))} || exit")
    if job.env_file is not None:
        file = shlex.quote(str(job.env_file))
        # It may read variables that are not set.
        failed = '{ echo "environment: status $?"; exit 1; }'
        lines += ["set +u", f"source {file} || {failed}", "set -u"]
    lines += [
        'echo "[$(date +%FT%T)] job $SLURM_JOB_ID, restart ${SLURM_RESTART_COUNT:-0}, '
        'nodes $SLURM_JOB_NODELIST"',
        "",
        *_begin(job),
        *_srun(job),
        "status=$?",
        "",
        *_ending(job),
    ]
    return "\n".join(lines) + "\n"


def _options(job: Job) -> list[str]:
    options = [f"--job-name={job.name}", f"--nodes={job.nodes}", "--ntasks-per-node=1"]
    if job.gpus_per_node:
        options += [f"--gpus-per-node={job.gpus_per_node}"]
    if job.launched and job.gpus_per_node:
        options += ["--exclusive", "--mem=0"]
    if job.cpus_per_node is not None:
        options.append(f"--cpus-per-task={job.cpus_per_node}")
    options += [
        f"--{key}={value}"
        for key, value in (
            ("time", job.time), ("partition", job.partition), ("account", job.account)
        )
        if value is not None
    ]  # fmt: skip
    if job.launched:  # a plain command has nothing to save: it would die of the signal
        options.append(f"--signal=USR1@{job.save_s}")
    options += [
        "--requeue",
        "--open-mode=append",
        f"--output={job.output}",
        *job.sbatch_options,
    ]
    return [f"#SBATCH {_quoted(option)}" for option in options]


def _quoted(option: str) -> str:
    """An option as sbatch reads it from a script: its quotes are like a shell's."""
    plain = re.fullmatch(r"[\w@%+=:,./^-]+", option, re.ASCII)
    return option if plain else '"' + _one_line(option).replace('"', '\\"') + '"'


def _one_line(text: str) -> str:
    if not text.isprintable() or "\\" in text:
        raise ConfigError(
            f"{text!r} has a backslash or a control character, which no line of a batch script can "
            "hold: give another name or folder"
        )
    return text


def _begin(job: Job) -> list[str]:
    """Write down that the stage has begun; where it was done already, the job is."""
    if job.mark is None:
        return []
    return [
        _mark(job, "started", after_work=False),
        "case $? in",
        "    0) ;;",
        f'    {DONE_BEFORE}) echo "done before"; exit 0 ;;',
        "    *) exit 1 ;;",
        "esac",
    ]


def _srun(job: Job) -> list[str]:
    options = [f"--wait={WAIT_S}", "--cpu-bind=none"]
    if job.cpus_per_node is not None:
        options.append(f"--cpus-per-task={job.cpus_per_node}")
    if job.container_image is not None:
        options.append(f"--container-image={job.container_image}")
    if job.container_mounts is not None:
        options.append(f"--container-mounts={job.container_mounts}")
    first = ["srun", *options]
    if not job.launched:
        return _continued([first, job.words])
    start = [job.python, "-m", LAUNCHER, f"--nproc-per-node={job.ranks_per_node}"]
    return _continued([first, start, ["-m", *job.words[:3]], *([word] for word in job.words[3:])])


def _continued(parts: Sequence[Sequence[str]]) -> list[str]:
    """One command over several lines."""
    lines = [shlex.join(part) for part in parts]
    return [
        ("    " if index else "") + line + (" \\" if index < len(lines) - 1 else "")
        for index, line in enumerate(lines)
    ]


def _ending(job: Job) -> list[str]:
    done = (
        ["if ((status == 0)); then", f"    {_mark(job, 'done')} || exit", "fi"] if job.mark else []
    )
    if not job.launched:
        return [*done, 'exit "$status"']
    lines = [
        "# 75: the ranks have saved and want to be started again; 138: SIGUSR1 came before a rank.",
        "if ((status == 75 || status == 138)); then",
        '    echo "[$(date +%FT%T)] saved; requeued"',
        *([f"    {_mark(job, 'started')}"] if job.mark else []),
        '    scontrol requeue "$SLURM_JOB_ID" && sleep 600',
        "fi",
    ]
    return [*lines, *done, 'exit "$status"']


def _mark(job: Job, state: str, *, after_work: bool = True) -> str:
    assert job.mark is not None
    words = shlex.join([job.host_python, "-m", "megarl.pipeline.mark", *job.mark, state])
    return f'{words} "$SECONDS"' if after_work else words

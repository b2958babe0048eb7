"""`megarl submit PIPELINE_OR_CONFIG`: check everything, write scripts, submit them as a chain."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from megarl.errors import ConfigError
from megarl.pipeline.check import check_run_folders, check_stages, load_stages
from megarl.pipeline.records import Record, Records, done_of, wanted_records
from megarl.pipeline.spec import Pipeline
from megarl.slurm.jobs import SCRIPTS, make_jobs, read_work, resources_of
from megarl.slurm.options import build_parser
from megarl.slurm.script import script

JOBS = "jobs.json"
"""Stage -> id of the job that was submitted last, beside the scripts."""


def main(arguments: Sequence[str], commands: Sequence[str], say: Callable[[str], None]) -> int:
    """Submit a pipeline or a config; returns the exit status.

    commands: what megarl can run; say: takes one line for whoever watches.
    """
    parsed = build_parser().parse_intermixed_args(list(arguments))
    pipeline, is_pipeline = read_work(parsed, commands)
    resources = resources_of(pipeline, parsed)
    if parsed.env_file is not None and not parsed.env_file.is_file():
        raise ConfigError(f"--env-file {parsed.env_file}: there is no such file")
    loaded = load_stages(pipeline)
    sizes = {name: own.nodes * own.ranks_per_node for name, own in resources.items()}
    # Inside a container paths may be others.
    files = parsed.container_image is None
    checked = check_stages(pipeline, loaded, sizes, here=False, files=files)
    wanted = wanted_records(pipeline, loaded)
    found = Records(pipeline.folder).check(wanted) if is_pipeline else {}
    check_run_folders(pipeline, loaded, done_of(found))
    jobs = make_jobs(pipeline, resources, parsed, is_pipeline=is_pipeline)
    left = {name: job for name, job in jobs.items() if name not in done_of(found)}
    folder = pipeline.folder / SCRIPTS
    paths = {
        stage.name: folder / (f"{number}-{stage.name}.sh" if is_pipeline else f"{stage.name}.sh")
        for number, stage in enumerate(pipeline.stages, 1)
    }
    texts = {name: script(job) for name, job in left.items()}
    if checked.left:
        say(f"not checked here: {', '.join(checked.left)}")
    if parsed.dry_run:
        for name, text in texts.items():
            sys.stdout.write(f"# {paths[name]}\n{text}\n")
        return 0
    for name in jobs.keys() - left.keys():
        say(f"stage {name}: done before")
    if not left:
        say(f"all stages of {pipeline.name} are done")
        return 0
    _refuse_twice(folder)
    records = {name: found.get(name) or wanted[name] for name in left}
    _write(paths, texts, pipeline, records, is_pipeline)
    submit_chain({name: paths[name] for name in left}, folder / JOBS, say)
    return 0


def _write(
    paths: Mapping[str, Path],
    texts: Mapping[str, str],
    pipeline: Pipeline,
    records: Mapping[str, Record],
    is_pipeline: bool,
) -> None:
    try:
        for name, text in texts.items():
            paths[name].parent.mkdir(parents=True, exist_ok=True)
            paths[name].write_text(text)
            paths[name].chmod(0o755)
    except OSError as error:
        raise ConfigError(
            f"{pipeline.folder} cannot be written: {error.strerror or error}: give another folder"
        ) from None
    if is_pipeline:
        kept = Records(pipeline.folder)
        kept.begin(pipeline)
        for record in records.values():
            kept.write(record)


def submit_chain(paths: Mapping[str, Path], jobs_file: Path, say: Callable[[str], None]) -> None:
    """One job per script, each after the one before it succeeded; their ids go to `jobs_file`.

    ConfigError, after cancelling what was submitted, where sbatch refuses one.
    """
    ids: dict[str, str] = {}
    for name, path in paths.items():
        after = list(ids.values())[-1:]
        options = [f"--dependency=afterok:{job}" for job in after]
        options += ["--kill-on-invalid-dep=yes"] if after else []
        done = _slurm("sbatch", "--parsable", *options, str(path))
        if done.returncode:
            if ids:
                _slurm("scancel", *ids.values())
            raise ConfigError(f"{path}: sbatch refused it: {' '.join(done.stderr.split())}")
        ids[name] = done.stdout.strip().partition(";")[0]
        say(f"job {ids[name]}: {path}" + (f", after {after[0]}" if after else ""))
    jobs_file.write_text(json.dumps(ids, indent=1) + "\n")


def _refuse_twice(folder: Path) -> None:
    """ConfigError where jobs of an earlier submission would write into the same folders."""
    file = folder / JOBS
    if not file.exists():
        return
    try:
        ids = {str(job) for job in json.loads(file.read_text()).values()}
    except (OSError, ValueError, AttributeError) as error:
        raise ConfigError(
            f"{file} cannot be read ({error}), so that jobs of an earlier submission may be in the "
            "queue still: look with squeue, then remove it"
        ) from None
    # Asked for by their ids, those that have left the queue would be an error of squeue's.
    queued = _slurm("squeue", "--noheader", "--format=%A")
    if queued.returncode:
        raise ConfigError(
            f"{folder.parent}: squeue failed ({' '.join(queued.stderr.split())}), so that jobs of "
            "an earlier submission may be in the queue still: try again"
        )
    if running := [job for job in queued.stdout.split() if job in ids]:
        raise ConfigError(
            f"{folder.parent}: jobs {', '.join(running)} of an earlier submission are in the queue "
            f"still: let them end, or scancel {' '.join(running)}"
        )


def _slurm(*words: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(words, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise ConfigError(
            f"there is no {words[0]} here: submit from a machine of the cluster, or say --dry-run"
        ) from None

"""`megarl pipeline FILE`: check all stages, run those that are not done, report."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence

from megarl.pipeline.check import check_run_folders, check_stages, load_stages
from megarl.pipeline.records import Record, Records, done_of, wanted_records
from megarl.pipeline.runner import run_stages
from megarl.pipeline.spec import Pipeline, load_pipeline
from megarl.runtime.aside import sole_use


def build_parser() -> argparse.ArgumentParser:
    """The arguments of `megarl pipeline`."""
    parser = argparse.ArgumentParser(
        prog="megarl pipeline",
        description="Run the stages of a pipeline file in order. What is done is skipped, what was "
        "interrupted goes on, and what was made with other settings is refused.",
    )
    parser.add_argument("file", metavar="FILE", help="YAML file that names the stages")
    parser.add_argument(
        "overrides", nargs="*", metavar="a.b=c", help="seed=1, or STAGE.KEY=VALUE of one stage"
    )
    parser.add_argument("--dir", metavar="D", help="where all stages write; instead of the file's")
    parser.add_argument(
        "--dry-run", action="store_true", help="check everything, print the stages, stop"
    )
    return parser


def main(arguments: Sequence[str], commands: Sequence[str], say: Callable[[str], None]) -> int:
    """Run a pipeline; the exit status of its first stage that failed, or 0.

    commands: what megarl can run; say: takes one line for whoever watches.
    """
    parsed = build_parser().parse_intermixed_args(list(arguments))
    pipeline = load_pipeline(parsed.file, parsed.overrides, folder=parsed.dir, commands=commands)
    loaded = load_stages(pipeline)
    ranks = check_stages(pipeline, loaded).ranks
    wanted = wanted_records(pipeline, loaded)
    found = Records(pipeline.folder).check(wanted)
    check_run_folders(pipeline, loaded, done_of(found))
    if parsed.dry_run:
        sys.stdout.write(describe(pipeline, ranks, found))
        return 0
    with sole_use(pipeline.folder, "dir"):
        status = run_stages(pipeline, wanted, say)
        if status == 0:
            from megarl.pipeline.report import write_report

            write_report(pipeline.folder)
    return status


def describe(pipeline: Pipeline, ranks: Mapping[str, int], found: Mapping[str, Record]) -> str:
    """The stages as they would run, one command line each."""
    lines = [f"pipeline {pipeline.name}: {len(pipeline.stages)} stages in {pipeline.folder}"]
    for stage in pipeline.stages:
        words = stage.words() if stage.command is None else ["megarl", *stage.words()]
        where = f" on {ranks[stage.name]} ranks" if stage.name in ranks else ""
        state = {"done": "done", "started": "goes on"}
        what = state[found[stage.name].state] if stage.name in found else "to do"
        lines += [f"{stage.name} ({what}){where}", f"  {shlex.join(words)}"]
    return "\n".join(lines) + "\n"

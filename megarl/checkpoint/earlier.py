"""May a run go on in its folder? Asked before it is submitted, and again when it starts."""

from __future__ import annotations

from pathlib import Path

from megarl.checkpoint.folder import check_readable, goes_on
from megarl.config.resume import check_same_run
from megarl.config.schema import Config
from megarl.observe.records import holds_run

RESOLVED = "config.yaml"
"""Settings of the run with their origins, in the run folder."""


def check_folder(command: str, config: Config) -> None:
    """ConfigError or DataError where a run of this command cannot go on in its folder.

    Nothing is written.
    """
    folder = Path(config.run.dir)
    if command == "eval" or config.checkpoint.resume_mode == "never" or not holds_run(folder):
        return
    check_same_run(folder / RESOLVED, config, command)
    if goes_on(config):
        check_readable(config)

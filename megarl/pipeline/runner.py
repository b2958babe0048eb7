"""Runs the stages of a pipeline that are not done, each as a process of its own."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence

from megarl.errors import ConfigError
from megarl.pipeline.records import Record, Records
from megarl.pipeline.spec import Pipeline, Stage
from megarl.runtime.requeue import REQUEUE_STATUS
from megarl.runtime.spawn import die_with_parent

MODULE = "megarl.cli.main"
INTERRUPT_GRACE_S = 2.0
"""A terminal sends its ^C to the stage as well: so long it may take to leave by itself."""


def run_stages(pipeline: Pipeline, wanted: Mapping[str, Record], say: Callable[[str], None]) -> int:
    """Run what is not done yet, in order; the exit status of the first that failed, or 0.

    Everything is checked already. A stage that was interrupted is started again: one that keeps
    checkpoints goes on from its newest.
    """
    records = Records(pipeline.folder)
    found = records.check(wanted)
    records.begin(pipeline)
    for number, stage in enumerate(pipeline.stages, 1):
        record = found.get(stage.name) or wanted[stage.name]
        title = f"stage {number} of {len(pipeline.stages)}, {stage.name}"
        if record.state == "done":
            say(f"{title}: done before ({record.seconds:.0f} s), see {records.path(stage.name)}")
            continue
        say(f"{title} ...")
        record.state = "started"
        records.write(record)
        started = time.monotonic()
        status = run_command(command_line(stage))
        seconds = time.monotonic() - started
        records.mark(stage.name, "started" if status else "done", seconds)
        if status:
            say(f"{title}: {_ending(status)}; the same command goes on with this stage")
            return status
        say(f"{title}: {seconds:.0f} s")
    return 0


def command_line(stage: Stage) -> list[str]:
    """The words that start a stage; `python` is this interpreter."""
    words = stage.words()
    if stage.command is not None:
        return [sys.executable, "-m", MODULE, *words]
    return [sys.executable, *words[1:]] if words[0] in ("python", "python3") else words


def run_command(words: Sequence[str]) -> int:
    """Run it to its end; its exit status as a shell counts it.

    SIGTERM and SIGUSR1 are handed on, and it is waited for: what they ask for is its own affair.
    """
    try:
        # It ends with this process, however that ends.
        process = subprocess.Popen(list(words), preexec_fn=die_with_parent)
    except OSError as error:
        raise ConfigError(
            f"{words[0]} cannot be started ({error.strerror}): give a program that is on PATH"
        ) from None

    def hand_on(number: int, frame: object) -> None:
        if process.poll() is None:
            process.send_signal(number)

    before = {each: signal.signal(each, hand_on) for each in (signal.SIGTERM, signal.SIGUSR1)}
    try:
        status = process.wait()
    except KeyboardInterrupt:
        status = _interrupted(process)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return 128 - status if status < 0 else status


def _interrupted(process: subprocess.Popen[bytes]) -> int:
    try:
        process.wait(INTERRUPT_GRACE_S)
    except subprocess.TimeoutExpired:
        process.terminate()
        process.wait()
    return 128 + signal.SIGINT


def _ending(status: int) -> str:
    if status == REQUEUE_STATUS:
        return "asked to stop, and saved"
    if status in (128 + signal.SIGINT, 128 + signal.SIGTERM):
        return "interrupted"
    return f"failed with exit status {status}"

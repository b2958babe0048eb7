"""How a run that was asked to leave says that it wants to be started again."""

from __future__ import annotations

import os
import signal
from pathlib import Path

REQUEUE = "requeue"
"""File in the run folder: the step that was saved. It goes when the run goes on."""
REQUEUE_STATUS = 75
"""Exit status then (EX_TEMPFAIL of sysexits.h); under torchrun, for which any status but 0 is a
failure to be restarted at once, 0, unless `STATUS_IS_READ` is set."""
STATUS_IS_READ = "MEGARL_STATUS_IS_READ"
"""Variable that a launcher sets which leaves with the status of its ranks."""


def requeue_status() -> int:
    """What this process leaves with, so that whoever started it starts it again."""
    hidden = "TORCHELASTIC_RUN_ID" in os.environ and STATUS_IS_READ not in os.environ
    return 0 if hidden else REQUEUE_STATUS


def ask_for_requeue(run_dir: Path, step: int) -> None:
    """Leave word that the run was saved after `step` and has more to do."""
    (run_dir / REQUEUE).write_text(f"{step}\n")


def withdraw_requeue(run_dir: Path) -> None:
    """The run goes on."""
    (run_dir / REQUEUE).unlink(missing_ok=True)


def hold_signals() -> None:
    """Have SIGUSR1 wait, here and in processes started from here, until it can be answered."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})


def let_signals_through() -> None:
    """Answer SIGUSR1 from now on."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})

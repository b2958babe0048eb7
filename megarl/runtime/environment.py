"""The process environment, read and written for the parts that must not reach for it themselves."""

from __future__ import annotations

import os
from collections.abc import Mapping

from megarl.runtime.bringup import POOL_VARIABLES, Launch, read_launch, write_pool_env

CALL_AGAIN = 75
"""Exit status (EX_TEMPFAIL) of a run that was asked to stop and saved: start it again."""


def this_launch() -> Launch:
    """Who this process is, by its environment; ConfigError where that is incomplete."""
    return read_launch(os.environ)


def enter_pool(launch: Launch, rank: int, size: int) -> None:
    """Make the environment describe the pool as if it were the whole job."""
    write_pool_env(os.environ, launch, rank, size)


def leave_pool() -> None:
    """Take away what `enter_pool` wrote, in a process that no launcher started."""
    for name in POOL_VARIABLES:
        os.environ.pop(name, None)


def pool_rank_and_local_rank() -> tuple[int, int]:
    """RANK (the pool's, once it is entered) and LOCAL_RANK (physical, on the node)."""
    return int(os.environ["RANK"]), int(os.environ["LOCAL_RANK"])


def set_variables(values: Mapping[str, str], *, keep_given: bool = False) -> None:
    """Set variables; `keep_given` leaves those alone that the user has set."""
    for name, value in values.items():
        if not keep_given or name not in os.environ:
            os.environ[name] = value

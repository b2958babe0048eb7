"""One rank of `megarl`, to which something happens at a given moment: a signal, or a full disk.

    python killed_rank.py COMMAND CONFIG [a.b=c ...]

MOMENT in the environment is a json object: `at`, how long after it (`after_s`), and either the
`signal` that the rank sends itself or `limit_bytes`, what no file may exceed from then on. `at` is
a verb and its step ("update:2"); "writing:N", when the N-th set of a role's files is about to be
written; "naming:N" (rank 0), at the N-th flush of the names in the folder of checkpoints. The time
is left in the file `mark`.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def main() -> int:
    """Arm, then run the command."""
    if "MOMENT" in os.environ:
        _arm(**json.loads(os.environ["MOMENT"]))
    from megarl.cli.main import main as megarl

    return megarl(sys.argv[1:])


def _arm(at: str, after_s: float, signal: int, limit_bytes: int, mark: str) -> None:
    def happen() -> None:
        Path(mark).write_text(str(time.time()))
        if limit_bytes:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes))
        else:
            os.kill(os.getpid(), signal)

    def send() -> None:
        if after_s:
            threading.Timer(after_s, happen).start()
        else:
            happen()

    name, _, count = at.partition(":")
    if name == "naming":
        from megarl.runtime import aside

        sync = aside.sync
        counted = _counted(sync, int(count), send)
        aside.sync = lambda path: (counted if path.name == "checkpoints" else sync)(path)
    elif name == "writing":
        from megarl.models import role_save

        role_save._write_files = _counted(role_save._write_files, int(count), send)
    else:
        _arm_verb(name, int(count), send)


def _arm_verb(verb: str, step: int, send: Callable[[], None]) -> None:
    from megarl.runtime.watch import Watch

    announce = Watch.announce

    def heard(self: Watch, sequence: int, name: str, at: int | None) -> None:
        announce(self, sequence, name, at)
        if (name, at or 0) == (verb, step):
            send()

    Watch.announce = heard  # type: ignore[method-assign]


def _counted(function: Callable[..., Any], count: int, send: Callable[[], None]) -> Any:
    calls = 0

    def counted(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == count:
            send()
        return function(*arguments)

    return counted


if __name__ == "__main__":
    sys.exit(main())

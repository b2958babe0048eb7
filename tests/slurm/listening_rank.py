"""One rank under the launcher, in the trainer's stead: it leaves with 75 when it is asked to save.

python -m megarl.slurm.node --nproc-per-node=2 -m listening_rank WHAT FOLDER
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path


def main(what: str, folder: Path) -> int:
    """listen: wait for SIGUSR1; deaf: the same, and never listen; fail: rank 1 leaves with 3.

    A start that finds the other ranks' signals of an earlier one is done at once.
    """
    rank = os.environ["RANK"]
    place = f"{rank} {os.environ['LOCAL_RANK']} {os.environ['WORLD_SIZE']}"
    again = (folder / f"{rank}.signals").exists()
    got: list[str] = []
    if what != "deaf":
        for number in (signal.SIGUSR1, signal.SIGTERM):
            signal.signal(number, lambda n, _: got.append(signal.Signals(n).name))
    (folder / f"{rank}.up").write_text(place)
    if what == "fail":
        return 3 if rank == "1" else 0
    deadline = time.monotonic() + 60
    while not again and time.monotonic() < deadline:
        time.sleep(0.05)
        if got:
            time.sleep(0.5)  # as long as the save takes
            (folder / f"{rank}.signals").write_text(" ".join(got))
            return 75
    return 0 if again else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2])))

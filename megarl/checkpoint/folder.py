"""The checkpoints of a run on disk: written aside, renamed when whole, the newest named last.

<run.dir>/checkpoints/iter_0000010/actor/       torch_dist, as Megatron-Core writes it
                                   critic/
                                   rank_0000.pt  random generators of rank 0
                                   state.json    where the run stands, and every file's size
<run.dir>/checkpoints/latest_checkpointed_iteration.txt
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from megarl.config.schema import Config
from megarl.errors import DataError

CHECKPOINTS = "checkpoints"
LATEST = "latest_checkpointed_iteration.txt"
ASIDE = ".partial"
_NAME = re.compile(r"iter_(\d{7})")


def saves(config: Config) -> bool:
    """Whether a run with these settings keeps checkpoints."""
    return config.checkpoint.save_interval > 0


def goes_on(config: Config) -> bool:
    """Whether a run with these settings continues one that is in its folder."""
    folder = CheckpointFolder(Path(config.run.dir) / CHECKPOINTS)
    match config.checkpoint.resume_mode:
        case "never":
            return False
        case "previous":
            return bool(folder.steps())
        case _:
            return folder.latest() is not None


class CheckpointFolder:
    """`root` is <run.dir>/checkpoints; one process of the run changes it."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def steps(self) -> list[int]:
        """Steps of all whole checkpoints, ascending."""
        found = (_NAME.fullmatch(path.name) for path in self.root.glob("iter_*"))
        return sorted(int(match.group(1)) for match in found if match is not None)

    def latest(self) -> int | None:
        """The newest whole checkpoint's step; None where there is none.

        Raises DataError where the file that names it does not fit the folder.
        """
        try:
            text = (self.root / LATEST).read_text().strip()
        except FileNotFoundError:
            return None
        if not text.isdigit() or not self.path(int(text)).is_dir():
            raise DataError(
                f"{self.root / LATEST} names {text!r}, and the checkpoints there are of steps "
                f"{self.steps()}: write one of these into it, or set "
                "checkpoint.resume_mode=previous"
            )
        return int(text)

    def path(self, step: int) -> Path:
        """The folder of a step's checkpoint."""
        return self.root / f"iter_{step:07d}"

    def aside(self, step: int) -> Path:
        """Where it is written before it is whole."""
        return self.root / f"iter_{step:07d}{ASIDE}"

    def begin(self, step: int, parts: list[str]) -> None:
        """Make the folder aside, with one folder for each part; leftovers of others are removed."""
        self.root.mkdir(parents=True, exist_ok=True)
        for left in self.root.glob(f"*{ASIDE}"):
            shutil.rmtree(left)
        for part in parts:
            (self.aside(step) / part).mkdir(parents=True)

    def finish(self, step: int, keep_last: int, keep_every: int) -> None:
        """Give the whole checkpoint its name, then name it the newest, then remove old ones.

        keep_last: how many stay (0: all); keep_every: multiples of it stay for ever (0: none).
        """
        path = self.path(step)
        if path.exists():  # of an attempt that was resumed from before it
            shutil.rmtree(path)
        os.replace(self.aside(step), path)
        sync_folder(self.root)
        named = self.root / (LATEST + ASIDE)
        write_synced(named, f"{step}\n")
        os.replace(named, self.root / LATEST)
        sync_folder(self.root)
        old = self.steps()[:-keep_last] if keep_last else []
        for each in old:
            if each != step and not (keep_every and each % keep_every == 0):
                shutil.rmtree(self.path(each))


def file_sizes(folder: Path) -> dict[str, int]:
    """Path below the folder -> bytes, of every file in it."""
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.stat().st_size for path in found}


def write_synced(path: Path, text: str) -> None:
    """Write a file that survives a power cut once this returns."""
    with path.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Have the names in a folder survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

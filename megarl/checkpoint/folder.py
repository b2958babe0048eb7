"""The checkpoints of a run on disk: written aside, renamed when whole, the newest named last.

<run.dir>/checkpoints/iter_0000010/actor/       torch_dist, as Megatron-Core writes it
                                   critic/
                                   rank_0000.pt  random generators of rank 0
                                   state.json    where the run stands, and every file's size
                       iter_0000020.unreadable/  left out by resume_mode previous
<run.dir>/checkpoints/latest_checkpointed_iteration.txt
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megarl.checkpoint.fingerprint import fingerprint, model_facts
from megarl.config.schema import Config
from megarl.errors import ConfigError, DataError
from megarl.runtime import aside

CHECKPOINTS = "checkpoints"
LATEST = "latest_checkpointed_iteration.txt"
STATE = "state.json"
ASIDE = ".partial"
ROLES = ("actor", "critic", "reference", "reward")
UNREADABLE = ".unreadable"
_NAME = re.compile(r"iter_(\d{7})")


def saves(config: Config) -> bool:
    """Whether a run with these settings keeps checkpoints."""
    return config.checkpoint.save_interval > 0 or config.checkpoint.best_metric is not None


def goes_on(config: Config) -> bool:
    """Whether a run with these settings continues one that is in its folder."""
    return bool(_folder(config).candidates(config.checkpoint.resume_mode))


def check_readable(config: Config) -> None:
    """Whether the run can go on from what is in its folder.

    DataError where no checkpoint that it may go on from is whole, by names and sizes; ConfigError
    where it is of a later step than the run's last, or of other data.
    """
    folder, mode = _folder(config), config.checkpoint.resume_mode
    problems = []
    for step in folder.candidates(mode):
        try:
            _check_fits(config, folder.path(step), folder.state(step))
            return
        except DataError as error:
            problems.append(folder.with_cure(error, step, mode))
    if problems:
        raise DataError("; ".join(problems))


def _check_fits(config: Config, path: Path, state: dict[str, Any]) -> None:
    if state["step"] > config.run.steps:
        raise ConfigError(
            f"{path} is of step {state['step']}, and run.steps is {config.run.steps}: ask for as "
            "many at least, or set checkpoint.resume_mode=never to start anew"
        )
    saved, now = state.get("inputs", {}), input_facts(config)
    different = [
        f"{key}: {name} was {was} and is {now[key].get(name, 'not there')}"
        for key, facts in saved.items()
        for name, was in sorted(facts.items())
        if now.get(key) and now[key].get(name) != was
    ]
    if different:
        more = f" (and {len(different) - 3} more)" if len(different) > 3 else ""
        raise ConfigError(
            f"{path} was made from other files: {'; '.join(different[:3])}{more}; give the same, "
            "or set checkpoint.resume_mode=never to start anew"
        )


def _folder(config: Config) -> CheckpointFolder:
    return CheckpointFolder(Path(config.run.dir) / CHECKPOINTS)


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

    def candidates(self, resume_mode: str) -> list[int]:
        """Steps that a run may go on from, the first choice first.

        Raises DataError as `latest` does, unless the mode is previous.
        """
        if resume_mode == "never":
            return []
        try:
            latest = self.latest()
        except DataError:
            if resume_mode != "previous":
                raise
            return self.steps()[::-1]
        if resume_mode != "previous":
            return [] if latest is None else [latest]
        # A later one was not named yet when its run was killed, or belongs to one that was left.
        return [step for step in self.steps()[::-1] if latest is None or step <= latest]

    def state(self, step: int) -> dict[str, Any]:
        """What a checkpoint says of its run; DataError for a folder that is not what was written.

        Names and sizes are checked, not what is in the files.
        """
        path = self.path(step)
        try:
            state: dict[str, Any] = json.loads((path / STATE).read_text())
            sizes: dict[str, int] = state["files"]
        except OSError as error:
            what = f"{STATE}: {error.strerror}"
            raise DataError(f"checkpoint {path} cannot be read: {what}") from None
        except (ValueError, KeyError) as error:
            raise DataError(f"checkpoint {path} cannot be read: {STATE} is cut off") from error
        for name, size in sizes.items():
            try:
                found = os.stat(path / name).st_size
            except OSError as error:
                what = f"{name}: {error.strerror}"
                raise DataError(f"checkpoint {path} cannot be read: {what}") from None
            if found != size:
                raise DataError(
                    f"checkpoint {path} cannot be read: {name} has {found} bytes where {size} were "
                    "written"
                )
        return state

    def with_cure(self, error: DataError, step: int, resume_mode: str) -> str:
        """The message, with what can be done instead of going on from that step."""
        before = [other for other in self.steps() if other < step]
        if resume_mode == "previous":
            return str(error)
        if before:
            return (
                f"{error}; checkpoint.resume_mode=previous goes on from the one before it, of step "
                f"{before[-1]}"
            )
        return f"{error}; there is none before it: checkpoint.resume_mode=never starts anew"

    def path(self, step: int) -> Path:
        """The folder of a step's checkpoint."""
        return self.root / f"iter_{step:07d}"

    def aside(self, step: int) -> Path:
        """Where it is written before it is whole."""
        return self.root / f"iter_{step:07d}{ASIDE}"

    def begin(self, step: int, parts: list[str]) -> None:
        """Make the folder aside, with one folder for each part; leftovers of others are removed."""
        self.root.mkdir(parents=True, exist_ok=True)
        for left in self.root.glob(f"iter_*{ASIDE}"):
            shutil.rmtree(left)
        for part in parts:
            (self.aside(step) / part).mkdir(parents=True)

    def finish(self, step: int, keep_last: int, keep_every: int, best: int | None = None) -> None:
        """Give the whole checkpoint its name, then name it the newest, then remove old ones.

        keep_last: how many stay (0: all); keep_every: multiples of it stay for ever (0: none);
        best: the step that stays as the best.
        """
        # There may be one already, of a run that went on from before it.
        aside.take_place(self.aside(step), self.path(step))
        self._name(step)
        up_to_it = [each for each in self.steps() if each <= step]
        for each in up_to_it[:-keep_last] if keep_last else []:
            if each != best and not (keep_every and each % keep_every == 0):
                shutil.rmtree(self.path(each))

    def leave_out(self, left: Sequence[int], step: int) -> None:
        """Name `step` the newest, and set those aside that cannot be read."""
        self._name(step)
        for each in left:
            path = self.path(each)
            target = path.with_name(path.name + UNREADABLE)
            if target.exists():
                shutil.rmtree(target)
            os.replace(path, target)

    def _name(self, step: int) -> None:
        named = self.root / (LATEST + ASIDE)
        write_synced(named, f"{step}\n".encode())
        os.replace(named, self.root / LATEST)
        aside.sync(self.root)


def file_sizes(folder: Path) -> dict[str, int]:
    """Path below the folder -> bytes, of every file in it."""
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.stat().st_size for path in found}


def input_facts(config: Config) -> dict[str, dict[str, str]]:
    """Setting -> what is known of the files that it names; nothing of those not on this machine."""
    data = config.data.train_path
    paths = {f"{role}.model.path": getattr(config, role).model.path for role in ROLES}
    facts = {key: model_facts(path) for key, path in paths.items() if path}
    if data and Path(data).is_file():
        facts["data.train_path"] = {"the file": fingerprint(data)}
    return facts


def write_synced(path: Path, content: bytes) -> None:
    """Write a file that survives a power cut once this returns."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())

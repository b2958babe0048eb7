"""Saves a stage and has it go on: weights, Adam, and where everything stands, bit for bit."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from megarl.checkpoint.folder import CHECKPOINTS, CheckpointFolder, file_sizes, write_synced
from megarl.errors import DataError, RunError
from megarl.models.dist_checkpoint import load_role, save_role
from megarl.models.role_save import CheckpointError, RoleSave
from megarl.runtime.requeue import ask_for_requeue, withdraw_requeue
from megarl.train.stage import Stage

STATE = "state.json"


class Checkpoints:
    """The checkpoints of one stage; all ranks call its methods together."""

    def __init__(self, stage: Stage) -> None:
        self._stage, self._settings = stage, stage.config.checkpoint
        self._folder = CheckpointFolder(Path(stage.config.run.dir) / CHECKPOINTS)
        self._roles = stage.trained_roles()
        self._on_the_way: tuple[int, list[RoleSave], str] | None = None
        """Step, parts and state of a save that is still being written."""

    def save_if_due(self) -> None:
        """After every `checkpoint.save_interval` steps, after the last, and when asked to leave."""
        stage, interval = self._stage, self._settings.save_interval
        asked, written = self._agree_on_facts()
        if written:
            self._complete()
        last = stage.step == stage.config.run.steps
        if asked or (interval and (stage.step % interval == 0 or last)):
            with stage.verb("save_checkpoint"):
                self._complete()
                self._begin(copies=self._settings.async_save and not (asked or last))
        if asked and not last:
            stage.leaving = True
            if stage.control.is_rank(0):
                ask_for_requeue(Path(stage.config.run.dir), stage.step)

    def resume(self) -> None:
        """Go on from the newest checkpoint, where there is one and the settings want it.

        Raises DataError, naming it, for one that cannot be read; with resume_mode previous, only
        where none can.
        """
        stage, mode = self._stage, self._settings.resume_mode
        first = stage.control.is_rank(0)
        if first:
            withdraw_requeue(Path(stage.config.run.dir))
        if mode == "never":
            return
        with stage.verb("load_checkpoint"):
            problems: list[str] = []
            for step in stage.control.gather(self._candidates() if first else [])[0]:
                problem = self._try(step)
                if problem is None:
                    self._go_on(step, problems)
                    return
                problems.append(problem)
                if mode != "previous":
                    cure = "; checkpoint.resume_mode=previous goes on from the one before it"
                    raise DataError(problem + cure)
            if problems:
                raise DataError("; ".join(problems))

    def _candidates(self) -> list[int]:
        """Steps to try, the newest first."""
        if self._settings.resume_mode == "previous":
            return self._folder.steps()[::-1]
        latest = self._folder.latest()
        return [] if latest is None else [latest]

    def _go_on(self, step: int, problems: list[str]) -> None:
        books = self._stage.books
        if books.logger is not None:
            books.logger.forget_after(step)
        if books.progress is not None:
            for problem in problems:
                books.progress.note(problem)
            books.progress.begin_at(step)

    def _agree_on_facts(self) -> tuple[bool, bool]:
        """Whether any rank was asked to leave, and whether a save is written on all of them."""
        control, saves = self._stage.control, self._on_the_way
        here = saves is not None and all(save.is_written for save in saves[1])
        facts = control.gather((control.asked_to_leave(), here))
        return any(asked for asked, _ in facts), all(written for _, written in facts)

    def _begin(self, *, copies: bool) -> None:
        """Write the step's checkpoint; with `copies` it may be whole later."""
        stage, folder, step = self._stage, self._folder, self._stage.step
        state = {"step": step, "world_size": stage.universe.size, "stage": stage.state_dict()}
        with self._saving(step):
            if stage.control.is_rank(0):
                folder.begin(step, list(self._roles))
            stage.control.gather(None)  # the folder is there
            saves = self._write(folder.aside(step), copies)
        self._on_the_way = step, saves, json.dumps(state)
        if not copies:
            self._complete()

    def _complete(self) -> None:
        """Wait for the save that is on its way, and give it its name."""
        if self._on_the_way is None:
            return
        (step, saves, state), self._on_the_way = self._on_the_way, None
        settings, aside = self._settings, self._folder.aside(step)
        with self._saving(step):
            for save in saves:
                save.finish()
            self._stage.control.gather(None)  # all files are written
            if self._stage.control.is_rank(0):
                whole = json.loads(state) | {"files": file_sizes(aside)}
                write_synced(aside / STATE, json.dumps(whole))
                self._folder.finish(step, settings.keep_last, settings.keep_every)

    @contextmanager
    def _saving(self, step: int) -> Iterator[None]:
        """A failure inside ends the run on all ranks, also those that wait for this one."""
        try:
            yield
        except (OSError, RuntimeError, CheckpointError) as error:
            raise RunError(
                f"checkpoint of step {step} could not be written to {self._folder.root} "
                f"({type(error).__name__}: {error}); the one before it is still there"
            ) from error

    def _write(self, path: Path, copies: bool) -> list[RoleSave]:
        saves = []
        for name, role in self._roles.items():
            if role.here:
                saves.append(save_role(role.engine, path / name, copies=copies))
                if not copies:
                    saves[-1].finish()
                role.offload()
        torch.save(self._generators(), path / _rank_file(self._stage.universe.rank))
        return saves if copies else []

    def _try(self, step: int) -> str | None:
        """Load a checkpoint; what is wrong with it, the same on all ranks, where it cannot be."""
        control, path = self._stage.control, self._folder.path(step)
        state, problem = None, None
        if control.is_rank(0):
            try:
                state = _read_state(path)
            except DataError as error:
                problem = str(error)
        state, problem = control.gather((state, problem))[0]
        if problem is not None:
            return problem
        try:
            self._load(path, state)
        except DataError as error:
            problem = str(error)
        return next((found for found in control.gather(problem) if found is not None), None)

    def _load(self, path: Path, state: dict[str, Any]) -> None:
        stage = self._stage
        for name, role in self._roles.items():
            if role.here:
                load_role(role.engine, path / name)
                role.offload()
        own = path / _rank_file(stage.universe.rank)
        if state["world_size"] == stage.universe.size:
            self._set_generators(torch.load(own, weights_only=True))
        stage.step = int(state["step"])
        stage.load_state_dict(state["stage"])

    def _generators(self) -> dict[str, Any]:
        own = {n: r.engine.mesh.rng_states for n, r in self._roles.items() if r.here}
        return {"roles": own, "torch": torch.get_rng_state()}

    def _set_generators(self, states: dict[str, Any]) -> None:
        for name, own in states["roles"].items():
            self._roles[name].engine.mesh.rng_states = own
        torch.set_rng_state(states["torch"])


def _rank_file(rank: int) -> str:
    return f"rank_{rank:04d}.pt"


def _read_state(path: Path) -> dict[str, Any]:
    """A checkpoint's state; DataError for a folder that is not what was written."""
    try:
        state: dict[str, Any] = json.loads((path / STATE).read_text())
    except (OSError, ValueError) as error:
        raise DataError(f"checkpoint {path} cannot be read: {STATE}: {error}") from error
    for name, size in state["files"].items():
        try:
            found = os.stat(path / name).st_size
        except OSError as error:
            raise DataError(f"checkpoint {path} cannot be read: {name}: {error.strerror}") from None
        if found != size:
            raise DataError(
                f"checkpoint {path} cannot be read: {name} has {found} bytes where {size} were "
                "written"
            )
    return state

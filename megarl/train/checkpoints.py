"""Saves a stage and has it go on: weights, Adam, and where everything stands, bit for bit."""

from __future__ import annotations

import io
import json
import logging
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from megarl.checkpoint.folder import (
    CHECKPOINTS,
    STATE,
    UNREADABLE,
    CheckpointFolder,
    file_sizes,
    input_facts,
    write_synced,
)
from megarl.errors import DataError, PeerError, RunError
from megarl.models.dist_checkpoint import load_role, save_role
from megarl.models.role_save import CheckpointError, RoleSave
from megarl.runtime.aside import sync_tree
from megarl.runtime.generators import generator_states, seed_generators, set_generator_states
from megarl.runtime.requeue import ask_for_requeue, withdraw_requeue
from megarl.train.stage import Best, Stage

_LOG = logging.getLogger("megarl.checkpoints")


class Checkpoints:
    """The checkpoints of one stage; all ranks call its methods together."""

    def __init__(self, stage: Stage) -> None:
        self._stage, self._settings = stage, stage.config.checkpoint
        self._folder = CheckpointFolder(Path(stage.config.run.dir) / CHECKPOINTS)
        self._roles = stage.trained_roles()
        self._inputs = input_facts(stage.config) if stage.control.is_rank(0) else {}
        self._on_the_way: tuple[int, list[RoleSave], str] | None = None
        """Step, parts and state of a save that is still being written."""

    def save_if_due(self) -> None:
        """After every `checkpoint.save_interval` steps, the last, a best one, and when asked to."""
        stage, interval = self._stage, self._settings.save_interval
        asked, written = self._agree_on_facts()
        if written:
            self._complete()
        last = stage.step == stage.config.run.steps
        is_best = stage.best is not None and stage.best.step == stage.step
        if asked or is_best or (interval and (stage.step % interval == 0 or last)):
            with stage.verb("save_checkpoint"):
                self._complete()
                self._begin(copies=self._settings.async_save and not (asked or last))
        if asked and not last:
            stage.leaving = True
            if stage.control.is_rank(0):
                ask_for_requeue(Path(stage.config.run.dir), stage.step)
                sys.stderr.write(f"megarl: step {stage.step} is saved; the same command goes on\n")
                sys.stderr.flush()

    def resume(self) -> None:
        """Go on from the newest checkpoint, where there is one and the settings want it.

        Raises DataError, naming it, for one that cannot be read; with resume_mode previous, only
        where none can.
        """
        stage, mode = self._stage, self._settings.resume_mode
        first = stage.control.is_rank(0)
        # How much of them was drawn while models and engines were built is not the run's to tell.
        seed_generators(stage.config.run.seed)
        if mode != "never":
            with stage.verb("load_checkpoint"):
                found = self._folder.candidates(mode) if first else []
                self._load_one(stage.control.gather(found)[0])
        if first:
            withdraw_requeue(Path(stage.config.run.dir))

    def _load_one(self, candidates: Sequence[int]) -> None:
        """Go on from the first that can be read."""
        problems: list[str] = []
        for index, step in enumerate(candidates):
            error = self._try(step)
            if error is None:
                self._go_on(step, candidates[:index], problems)
                return
            problems.append(self._folder.with_cure(error, step, self._settings.resume_mode))
        if problems:
            raise DataError("; ".join(problems))

    def _go_on(self, step: int, left: Sequence[int], problems: Sequence[str]) -> None:
        books = self._stage.books
        if books.logger is not None:
            books.logger.forget_after(step)
        if self._stage.control.is_rank(0) and left:
            self._folder.leave_out(left, step)
            for each, problem in zip(left, problems, strict=True):
                kept = self._folder.path(each).name + UNREADABLE
                _LOG.warning("left out: %s", problem)
                sys.stderr.write(f"megarl: {problem}; it is left out, and kept as {kept}\n")
            sys.stderr.flush()
        _LOG.info("going on from the checkpoint of step %d", step)
        if books.progress is not None:
            books.progress.note(f"going on from the checkpoint of step {step}")
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
        state = {
            "step": step,
            "world_size": stage.universe.size,
            "inputs": self._inputs,
            "best": None if stage.best is None else asdict(stage.best),
            "stage": stage.state_dict(),
        }
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
            for name, role in self._roles.items():
                if role.pool.ranks[0] == self._stage.universe.rank:
                    sync_tree(aside / name)
            self._stage.control.gather(None)  # all files are written
            if self._stage.control.is_rank(0):
                whole = json.loads(state) | {"files": file_sizes(aside)}
                write_synced(aside / STATE, json.dumps(whole).encode())
                best = whole["best"] and whole["best"]["step"]
                self._folder.finish(step, settings.keep_last, settings.keep_every, best)

    @contextmanager
    def _saving(self, step: int) -> Iterator[None]:
        """A failure inside ends the run on all ranks, also those that wait for this one."""
        try:
            yield
        except (OSError, RuntimeError, CheckpointError, PeerError) as error:
            free = shutil.disk_usage(self._folder.root.parent).free / 1e9
            raise RunError(
                f"checkpoint of step {step} could not be written to {self._folder.root} "
                f"({type(error).__name__}: {error}; {free:.1f} GB are free there); the one before "
                "it is still there"
            ) from error

    def _write(self, path: Path, copies: bool) -> list[RoleSave]:
        saves = []
        for name, role in self._roles.items():
            if role.here:
                saves.append(save_role(role.engine, path / name, copies=copies))
                if not copies:
                    saves[-1].finish()
                role.offload()
        own = io.BytesIO()  # a full disk has a name when Python writes the file
        torch.save(self._generators(), own)
        write_synced(path / _rank_file(self._stage.universe.rank), own.getvalue())
        return saves if copies else []

    def _try(self, step: int) -> DataError | None:
        """Load a checkpoint; what is wrong with it, the same on all ranks, where it cannot be."""
        control = self._stage.control
        state: dict[str, Any] | None = None
        problem: str | None = None
        if control.is_rank(0):
            try:
                state = self._folder.state(step)
            except DataError as error:
                problem = str(error)
        state, problem = control.gather((state, problem))[0]
        if state is not None:
            try:
                self._load(self._folder.path(step), state)
            except DataError as error:
                problem = str(error)
        found = [each for each in control.gather(problem) if each is not None]
        return DataError(found[0]) if found else None

    def _load(self, path: Path, state: dict[str, Any]) -> None:
        stage = self._stage
        for name, role in self._roles.items():
            if role.here:
                load_role(role.engine, path / name)
                role.offload()
        if state["world_size"] == stage.universe.size:
            self._set_generators(_read_generators(path / _rank_file(stage.universe.rank)))
        stage.step = int(state["step"])
        stage.best = Best(**state["best"]) if state.get("best") else None
        stage.load_state_dict(state["stage"])

    def _generators(self) -> dict[str, Any]:
        own = {n: r.engine.mesh.rng_states for n, r in self._roles.items() if r.here}
        return {"roles": own, **generator_states()}

    def _set_generators(self, states: dict[str, Any]) -> None:
        for name, role in self._roles.items():
            if role.here and name in states["roles"]:  # roles may have moved to other ranks
                role.engine.mesh.rng_states = states["roles"][name]
        set_generator_states(states)


def _rank_file(rank: int) -> str:
    return f"rank_{rank:04d}.pt"


def _read_generators(path: Path) -> dict[str, Any]:
    try:
        states: dict[str, Any] = torch.load(path, weights_only=True)
    except Exception as error:  # Zip and pickle readers fail each in ways of its own.
        cause = f"{path.name}: {type(error).__name__}"
        raise DataError(f"checkpoint {path.parent} cannot be read: {cause}") from error
    return states

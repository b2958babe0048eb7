"""Saves a run and has it go on: weights, Adam, and where everything stands, bit for bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from megarl.checkpoint.folder import CHECKPOINTS, CheckpointFolder
from megarl.errors import DataError, RunError
from megarl.models.dist_checkpoint import load_role, save_role
from megarl.observe.metrics_file import METRICS_FILE, drop_after
from megarl.roles.megatron_role import MegatronRole
from megarl.train.evaluate import Answer, Evaluation
from megarl.train.run import Run

STATE = "state.json"


class Checkpoints:
    """The checkpoints of one run; all ranks call its methods together."""

    def __init__(self, run: Run) -> None:
        self._run, self._settings = run, run.config.checkpoint
        self._folder = CheckpointFolder(Path(run.config.run.dir) / CHECKPOINTS)
        self._roles: dict[str, MegatronRole] = {
            name: role
            for name, role in run.megatron_roles().items()
            if name in ("actor", "critic") and role is not None
        }

    def save_if_due(self) -> None:
        """After every `checkpoint.save_interval` steps, and after the last."""
        interval, run = self._settings.save_interval, self._run
        if interval and (run.step % interval == 0 or run.step == run.config.run.steps):
            with run.verb("save_checkpoint"):
                self._save()

    def resume(self) -> None:
        """Go on from the newest checkpoint, where there is one and the settings want it."""
        run, first = self._run, self._run.control.is_rank(0)
        if self._settings.resume_mode == "never":
            return
        with run.verb("load_checkpoint"):
            step = run.control.gather(self._folder.latest() if first else None)[0]
            if step is None:
                return
            self._load(self._folder.path(step))
            if first:
                drop_after(Path(run.config.run.dir) / METRICS_FILE, step)

    def _save(self) -> None:
        run, step, folder = self._run, self._run.step, self._folder
        first = run.control.is_rank(0)
        self._guarded(lambda: folder.begin(step, list(self._roles)) if first else None)
        self._guarded(lambda: self._write(folder.aside(step)))
        settings = self._settings
        if first:
            state = json.dumps(_state(run), indent=1)
            self._guarded(lambda: _finish(folder, step, state, settings))
        else:
            self._guarded(lambda: None)

    def _guarded(self, work: Any) -> None:
        """Do a part of a save; where any rank failed, all say so and the last checkpoint stays."""
        problem = None
        try:
            work()
        except (OSError, RuntimeError) as error:
            problem = f"{type(error).__name__}: {error}"
        for rank, found in enumerate(self._run.control.gather(problem)):
            if found is not None:
                raise RunError(
                    f"checkpoint of step {self._run.step}: rank {rank} could not write it to "
                    f"{self._folder.root} ({found}); the one before it is still there"
                )

    def _write(self, path: Path) -> None:
        for name, role in self._roles.items():
            if role.here:
                save_role(role.engine, path / name)
                role.offload()
        torch.save(self._generators(), path / _rank_file(self._run.universe.rank))

    def _load(self, path: Path) -> None:
        run = self._run
        try:
            state = json.loads((path / STATE).read_text())
        except (OSError, ValueError) as error:
            raise DataError(f"checkpoint {path} cannot be read: {STATE}: {error}") from error
        for name, role in self._roles.items():
            if role.here:
                load_role(role.engine, path / name)
                role.offload()
        own = path / _rank_file(run.universe.rank)
        if state["world_size"] == run.universe.size and own.exists():
            self._set_generators(torch.load(own, weights_only=True))
        _restore(run, state)

    def _generators(self) -> dict[str, Any]:
        own = {n: r.engine.mesh.rng_states for n, r in self._roles.items() if r.here}
        return {"roles": own, "torch": torch.get_rng_state()}

    def _set_generators(self, states: dict[str, Any]) -> None:
        for name, own in states["roles"].items():
            self._roles[name].engine.mesh.rng_states = own
        torch.set_rng_state(states["torch"])


def _rank_file(rank: int) -> str:
    return f"rank_{rank:04d}.pt"


def _finish(folder: CheckpointFolder, step: int, state: str, settings: Any) -> None:
    (folder.aside(step) / STATE).write_text(state)
    folder.finish(step, settings.keep_last, settings.keep_every)


def _state(run: Run) -> dict[str, Any]:
    """Where the run stands after a step, as JSON."""
    evaluations = {
        step: [_answer(one) for one in evaluation.answers]
        for step, evaluation in run.books.evaluations.items()
    }
    return {
        "step": run.step,
        "world_size": run.universe.size,
        "order": run.order.state_dict(),
        "kl_controller": run.kl_controller.state_dict(),
        "weight_version": run.actor.weight_version,
        "weight_sync": run.weight_sync.state_dict(),
        "evaluations": evaluations,
    }


def _restore(run: Run, state: dict[str, Any]) -> None:
    run.step = int(state["step"])
    run.order.load_state_dict(state["order"])
    run.kl_controller.load_state_dict(state["kl_controller"])
    run.actor.weight_version = int(state["weight_version"])
    run.weight_sync.load_state_dict(state["weight_sync"])
    for step, answers in state["evaluations"].items():
        found = tuple(Answer(**one | {"token_ids": tuple(one["token_ids"])}) for one in answers)
        run.books.evaluations[int(step)] = Evaluation(found)
    if run.books.progress is not None:
        run.books.progress.begin_at(run.step)


def _answer(answer: Answer) -> dict[str, Any]:
    return {name: getattr(answer, name) for name in Answer.__slots__}

"""The stages that learn from examples: pretraining, supervised fine-tuning, the reward model."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from megarl.mesh.run_plan import RolePlan
from megarl.models.transformer_config import torch_dtype
from megarl.observe.curves import SUPERVISED_PANELS, draw_run
from megarl.observe.report import show, summary_table, to_text
from megarl.roles.export import export_hf
from megarl.roles.megatron_role import MegatronRole
from megarl.runtime.device import peak_memory_bytes
from megarl.train.checkpoints import Checkpoints
from megarl.train.stage import Stage


class Objective(Protocol):
    """What is learned from examples; all ranks call its methods with the same ones."""

    @property
    def role(self) -> MegatronRole:
        """The role that learns."""
        ...

    def step(self, examples: Sequence[Any]) -> dict[str, float]:
        """One optimizer step; the same metrics on all ranks, with `loss` and `tokens`."""
        ...

    def evaluate(self, examples: Sequence[Any], batch_size: int) -> dict[str, float]:
        """Metrics of held-out examples, without learning."""
        ...

    def probe(self, examples: Sequence[Any]) -> dict[str, Any]:
        """What the model says of some tokens, to compare the written model with."""
        ...


class Order(Protocol):
    """In which order examples are taken."""

    def next(self) -> list[int]:
        """Numbers of the next step's examples."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Where it stands."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there; ConfigError where the order is another one."""
        ...


@dataclass(kw_only=True)
class SupervisedStage(Stage):
    """A stage on this rank."""

    objective: Objective
    plan: RolePlan
    """The role that learns."""
    train_examples: Sequence[Any]
    eval_examples: Sequence[Any]
    order: Order
    evaluations: dict[int, dict[str, float]] = field(default_factory=dict)
    """Step -> metrics of the held-out examples."""

    def trained_roles(self) -> Mapping[str, MegatronRole]:
        """The one."""
        return {self.objective.role.name: self.objective.role}

    def state_dict(self) -> dict[str, Any]:
        """The data's order, and all evaluations."""
        return {"order": self.order.state_dict(), "evaluations": self.evaluations}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.order.load_state_dict(state["order"])
        self.evaluations = {int(step): found for step, found in state["evaluations"].items()}

    def next_examples(self) -> list[Any]:
        """The step's examples, the same on every rank."""
        return [self.train_examples[index] for index in self.order.next()]

    def learn(self, examples: Sequence[Any]) -> dict[str, float]:
        """One optimizer step."""
        with self.verb("update"):
            return self.objective.step(examples)

    def evaluate_if_due(self) -> None:
        """Metrics of the held-out examples, where this step asks for them."""
        if not self.evaluation_is_due() or not self.eval_examples or self.step in self.evaluations:
            return
        self.control.step = self.step
        with self.verb("evaluate"):
            size = self.config.algorithm.global_batch_size
            self.evaluations[self.step] = self.objective.evaluate(self.eval_examples, size)
        found = self.evaluations[self.step].items()
        self.log_evaluation({f"eval/{name}": value for name, value in found})

    def finish_step(self, metrics: dict[str, float]) -> None:
        """Log the step, show it, evaluate when due."""
        memory = sum(self.control.gather(peak_memory_bytes())) / 2**30
        wall = time.perf_counter() - self.books.step_started
        timing = self.books.phases.pop() | {"timing_s/step": wall}
        rates = {"perf/tokens_per_s": metrics["tokens"] / wall, "perf/peak_memory_gib": memory}
        self.step += 1
        self.log(metrics | timing | rates, self.step)
        if self.books.progress is not None:
            right = {n: value for n, value in metrics.items() if n in ("accuracy", "probability")}
            speed = rates["perf/tokens_per_s"]
            self.books.progress.advance(1, loss=metrics["loss"], tokens_per_s=speed, **right)
        self.evaluate_if_due()


def learn(stage: SupervisedStage) -> None:
    """Train until the last step; every rank runs the same lines."""
    checkpoints = Checkpoints(stage)
    checkpoints.resume()
    stage.evaluate_if_due()
    for _ in stage.steps():
        metrics = stage.learn(stage.next_examples())
        stage.finish_step(metrics)
        checkpoints.save_if_due()


def finish(stage: SupervisedStage) -> None:
    """Write everything that outlasts the stage; all ranks call it."""
    config, folder = stage.config, Path(stage.config.run.dir)
    if config.run.export:
        with stage.verb("export"):
            dtype = torch_dtype(config.actor.model.dtype)
            role, plan = stage.objective.role, stage.plan
            export_hf(stage.universe, role, plan.shape, dtype, folder / "model", plan.path)
            probe = stage.objective.probe(stage.train_examples[:8])
            if stage.universe.rank == 0:
                (folder / "probe.json").write_text(json.dumps(probe))
    stage.close_books()
    if stage.universe.rank == 0:
        _report(stage, folder)


def _report(stage: SupervisedStage, folder: Path) -> None:
    found = {f"{step}": metrics for step, metrics in sorted(stage.evaluations.items())}
    summary = {"steps": stage.step, "evaluations": found}
    (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    text = ""
    if found:
        first, last = next(iter(found.values())), next(reversed(found.values()))
        rows = {f"held-out {name}": (first[name], value) for name, value in last.items()}
        table = summary_table(rows, ("", "first", "last"), f"Run {folder}")
        show(table)
        text = to_text(table)
    (folder / "report.txt").write_text(text + draw_run(folder, SUPERVISED_PANELS))

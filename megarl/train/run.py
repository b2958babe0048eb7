"""A run: its roles, data and books. What the driver's phases read, and what ends a step."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from megarl.data.order import PromptOrder
from megarl.reshard.executor import SyncReport
from megarl.roles.rollout import RolloutRole
from megarl.roles.server_sync import ServerSync
from megarl.roles.weight_sync import WeightSync
from megarl.runtime.device import peak_memory_bytes
from megarl.train.ahead import Ahead, idle_metrics
from megarl.train.eval_records import EvaluationRecord, record_of, write_answers
from megarl.train.evaluate import EvaluationSpec, evaluate
from megarl.train.learner import Learner
from megarl.train.scoring import Scorer
from megarl.train.shaping import RewardShaping
from megarl.types import Prompt, SamplingSpec


@dataclass(kw_only=True)
class Run(Learner):
    """A learner with its rollout engines, data and reward."""

    rollout: RolloutRole
    weight_sync: WeightSync | ServerSync
    scorer: Scorer
    shaping: RewardShaping
    prompts: Sequence[Prompt]
    eval_prompts: Sequence[Prompt]
    order: PromptOrder
    sampling: SamplingSpec
    evaluation: EvaluationSpec
    """How the held-out prompts are answered."""
    evaluations: dict[int, EvaluationRecord] = field(default_factory=dict)
    """Step (0 is before the first) -> what is kept of its evaluation."""
    ahead: Ahead | None = None
    """What servers make for steps to come; None: nothing, with rollout.max_staleness 0."""
    sync_metrics: dict[str, float] = field(default_factory=dict)
    """This rank's numbers of the last weight sync."""

    def state_dict(self) -> dict[str, Any]:
        """The learner's, with the data's order, the sync's version and all evaluations."""
        kept = {step: asdict(found) for step, found in self.evaluations.items()}
        ahead = {} if self.ahead is None else {"ahead": self.ahead.state_dict()}
        return (
            super().state_dict()
            | ahead
            | {
                "order": self.order.state_dict(),
                "reward_shaping": self.shaping.state_dict(),
                "weight_sync": self.weight_sync.state_dict(),
                "evaluations": kept,
            }
        )

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        super().load_state_dict(state)
        self.order.load_state_dict(state["order"])
        self.shaping.load_state_dict(state["reward_shaping"])
        self.weight_sync.load_state_dict(state["weight_sync"])
        if self.ahead is not None:
            self.ahead.load_state_dict(state.get("ahead"), state["order"]["position"])
        kept = state["evaluations"].items()
        self.evaluations = {int(step): EvaluationRecord(**found) for step, found in kept}

    def next_prompts(self, count: int | None = None) -> list[Prompt]:
        """A step's prompts, or `count` further ones; the same on every rank."""
        return [self.prompts[index] for index in self.order.next(count)]

    def note_sync(self, report: SyncReport) -> None:
        """Keep a sync's numbers for the step's metrics."""
        self.sync_metrics = {
            "reshard/seconds": report.seconds,
            "reshard/bytes_received": float(report.bytes_received),
            "reshard/bytes_local": float(report.bytes_local),
            "reshard/bytes_aliased": float(report.bytes_aliased),
            "reshard/bytes_indirect": float(report.bytes_indirect),
            "reshard/bytes_lower_bound": float(report.lower_bound_bytes),
            "reshard/bytes_from_other_nodes": float(report.bytes_from_other_nodes),
            "reshard/messages": float(report.messages),
            "reshard/rounds": float(report.rounds),
            "reshard/regions_verified": float(report.regions_verified),
        }

    def finish_step(self, step: int, metrics: dict[str, float]) -> None:
        """Log the step, show it, evaluate when due."""
        with self.verb("books"):
            metrics = metrics | self._sync_metrics() | self._memory_metrics()
            metrics |= self.rollout.take_metrics()
        metrics |= self._timing_metrics(metrics)
        if self.ahead is not None and "rollout/idle_s" in metrics:
            metrics |= idle_metrics(metrics)
        metrics["run/weight_version"] = float(self.weight_sync.version)
        self.step = step + 1
        self.log(metrics, step + 1)
        if self.books.progress is not None:
            self.books.progress.advance(
                reward=metrics["reward_mean"],
                kl=metrics.get("actor/ref_kl", metrics.get("actor/ppo_kl", 0.0)),
                tokens_per_s=metrics["perf/tokens_per_s"],
            )
        self.evaluate_if_due()

    def evaluate_if_due(self) -> None:
        """Answers to the held-out prompts, where this step asks for them."""
        wanted = self.evaluation_is_due() and self.eval_prompts
        if not wanted or self.step in self.evaluations:
            return
        self.control.step = self.step
        with self.verb("evaluate"):
            prompts = self.eval_prompts
            found = evaluate(self.rollout, self.control, self.scorer, prompts, self.evaluation)
            if self.universe.rank == 0:
                folder, suffix = Path(self.config.run.dir), f"-step{self.step}"
                write_answers(folder, prompts, found, suffix)
        self.evaluations[self.step] = record_of(found)
        self.log_evaluation(found.metrics)

    def _sync_metrics(self) -> dict[str, float]:
        """The sync's bytes over all ranks, and the slowest rank's time."""
        answers = self.control.gather(self.sync_metrics)
        total = {name: sum(answer[name] for answer in answers) for name in answers[0]}
        total["reshard/seconds"] = max(answer["reshard/seconds"] for answer in answers)
        canary = self.weight_sync.canary.report
        return total | {
            "reshard/canary_diff": canary.diff,
            "reshard/canary_actor_change": canary.actor_change,
            "reshard/canary_rollout_change": canary.rollout_change,
        }

    def _memory_metrics(self) -> dict[str, float]:
        return {"perf/peak_memory_gib": sum(self.control.gather(peak_memory_bytes())) / 2**30}

    def _timing_metrics(self, metrics: dict[str, float]) -> dict[str, float]:
        wall = time.perf_counter() - self.books.step_started
        timing = self.books.phases.pop()
        timing["timing_s/step"] = wall
        tokens = metrics["tokens/prompt"] + metrics["tokens/response"]
        generated = metrics.get("tokens/generated", metrics["tokens/response"])
        generation = max(timing.get("timing_s/generate", 0.0), 1e-9)
        perf = {
            "perf/tokens_per_s": tokens / wall,
            "perf/generated_tokens_per_s": generated / generation,
        }
        return timing | perf

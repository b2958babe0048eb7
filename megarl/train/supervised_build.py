"""Builds the stages that learn from examples, each from a validated config."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import AutoTokenizer

from megarl.checkpoint.folder import goes_on
from megarl.config.schema import Config
from megarl.data.examples import configured_examples
from megarl.data.order import PromptOrder
from megarl.data.preferences import configured_pairs
from megarl.mesh.control import Control
from megarl.mesh.run_plan import RunPlan
from megarl.mesh.universe import Universe
from megarl.roles.actor import Actor
from megarl.roles.reward_model import RewardModel
from megarl.train.build import Builder
from megarl.train.next_token import NextToken
from megarl.train.preference import Preference
from megarl.train.stage import open_books
from megarl.train.supervised import SupervisedStage


def build_sft(
    config: Config, plan: RunPlan, universe: Universe, control: Control
) -> SupervisedStage:
    """Supervised fine-tuning of the actor's model on the answers of data.train_path."""
    parts = _Parts("sft", config, plan, universe, control)
    role = parts.role(Actor)
    train, held_out = parts.read(configured_examples)
    return parts.stage(NextToken(control, role), train, held_out)


def build_reward_model(
    config: Config, plan: RunPlan, universe: Universe, control: Control
) -> SupervisedStage:
    """A reward model, from the preferences of data.train_path."""
    parts = _Parts("reward", config, plan, universe, control)
    role = parts.role(RewardModel)
    train, held_out = parts.read(configured_pairs)
    return parts.stage(Preference(control, role), train, held_out)


class _Parts:
    """What the stages are built from."""

    def __init__(
        self, name: str, config: Config, plan: RunPlan, universe: Universe, control: Control
    ) -> None:
        control.enter("build")
        self._name, self._config, self._plan = name, config, plan
        self._universe, self._control = universe, control

    def role(self, kind: type[Any]) -> Any:
        """The role that learns: the actor's model, mesh and optimizer."""
        config, actor = self._config, self._config.actor
        builder = Builder(config, self._plan, self._universe)
        return builder.role(
            "actor", kind, self._plan.actor, actor.model, actor.optimizer, config.run.steps
        )

    def read(self, read: Any) -> tuple[Any, Sequence[Any]]:
        """Training and held-out examples of the configured files."""
        data, tokenizer = self._config.data, AutoTokenizer.from_pretrained(self._plan.actor.path)
        held_out = read(data, data.eval_path, tokenizer) if data.eval_path else ()
        return read(data, data.train_path, tokenizer), held_out[: data.eval_size]

    def stage(self, objective: Any, train: Any, held_out: Sequence[Any]) -> SupervisedStage:
        """The stage; it notes how many examples there are, and how many were too long."""
        config = self._config
        stage = SupervisedStage(
            config=config,
            universe=self._universe,
            control=self._control,
            books=open_books(config, self._universe, self._name),
            objective=objective,
            plan=self._plan.actor,
            train_examples=train,
            eval_examples=held_out,
            order=PromptOrder(len(train), config.algorithm.global_batch_size, config.run.seed),
        )
        if not goes_on(config):
            counts = {"data/examples": len(train), "data/examples_dropped": train.dropped}
            stage.log(counts, 0)
        return stage

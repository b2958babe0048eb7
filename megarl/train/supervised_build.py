"""Builds the stages that learn from examples, each from a validated config."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import AutoTokenizer

from megarl.checkpoint.folder import goes_on
from megarl.config.schema import Config
from megarl.data.blend import wants_evaluation
from megarl.data.examples import configured_examples
from megarl.data.indexed import IndexedOrder, open_indexed
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
from megarl.train.supervised import Order, SupervisedStage


def build_pretraining(
    config: Config, plan: RunPlan, universe: Universe, control: Control
) -> SupervisedStage:
    """Next-token training of the actor's model on data.indexed."""
    parts = _Parts("pretrain", config, plan, universe, control)
    role = parts.role(Actor)
    batch = config.algorithm.global_batch_size
    indexed = config.data.indexed
    evaluates = wants_evaluation(indexed.split, config.run.eval_interval)
    data = open_indexed(
        indexed,
        num_train_samples=config.run.steps * batch,
        num_eval_samples=config.data.eval_size if evaluates else 0,
        seed=config.run.seed,
        vocab_size=plan.actor.shape.vocab_size,
        eod=AutoTokenizer.from_pretrained(plan.actor.path).eos_token_id,
        run_dir=config.run.dir,
        group=universe,
    )
    order = IndexedOrder(data, batch)
    return parts.stage(NextToken(control, role), data.train, data.eval or (), order)


def build_sft(
    config: Config, plan: RunPlan, universe: Universe, control: Control
) -> SupervisedStage:
    """Supervised fine-tuning of the actor's model on the answers of data.train_path."""
    parts = _Parts("sft", config, plan, universe, control)
    role = parts.role(Actor)
    train, held_out = parts.read(configured_examples)
    return parts.stage(NextToken(control, role), train, held_out, parts.order(train))


def build_reward_model(
    config: Config, plan: RunPlan, universe: Universe, control: Control
) -> SupervisedStage:
    """A reward model, from the preferences of data.train_path."""
    parts = _Parts("reward", config, plan, universe, control)
    role = parts.role(RewardModel)
    train, held_out = parts.read(configured_pairs)
    return parts.stage(Preference(control, role), train, held_out, parts.order(train))


class _Parts:
    """What the stages are built from."""

    def __init__(
        self, name: str, config: Config, plan: RunPlan, universe: Universe, control: Control
    ) -> None:
        control.enter("build")
        self._name, self._config, self._plan = name, config, plan
        self._universe, self._control = universe, control
        self._counts: dict[str, float] = {}

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

    def order(self, train: Any) -> PromptOrder:
        """Shuffled anew each epoch."""
        config = self._config
        if not goes_on(config):
            self._counts = {"data/examples": len(train), "data/examples_dropped": train.dropped}
        return PromptOrder(len(train), config.algorithm.global_batch_size, config.run.seed)

    def stage(
        self, objective: Any, train: Any, held_out: Sequence[Any], order: Order
    ) -> SupervisedStage:
        """The stage."""
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
            order=order,
        )
        if self._counts:
            stage.log(self._counts, 0)
        return stage

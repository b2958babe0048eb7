"""`PPOTrainer`: the same roles and phases in one process, for a loop of one's own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from megarl.config.schema import Config
from megarl.errors import ConfigError
from megarl.mesh.rows import RowMap
from megarl.mesh.run_plan import RunPlan
from megarl.runtime.environment import leave_pool
from megarl.types import RowTable

if TYPE_CHECKING:
    from megarl.algorithms.advantages import Estimator
    from megarl.experience.sample import Sample
    from megarl.train.learner import Learner
    from megarl.transfer.servers import Server
    from megarl.transfer.trainer import WeightTransfer

ARGUMENT_OF = {
    "actor.model.path": "model_name",
    "actor.model.dtype": "dtype",
    "actor.optimizer.lr": "lr",
    "critic.optimizer.lr": "critic_lr",
    "algorithm.kl_coef": "kl_coef",
    "algorithm.clip_ratio": "clip_range",
    "algorithm.adv_estimator": "adv_estimator",
    "algorithm.policy_loss": "policy_loss",
    "algorithm.ppo_epochs": "ppo_epochs",
    "algorithm.global_batch_size": "mini_batch_size",
    "algorithm.micro_batch_size": "micro_batch_size",
    "rollout.temperature": "temperature",
    "run.seed": "seed",
}
"""Setting of a run -> the trainer's argument, for messages."""


@dataclass(frozen=True, slots=True)
class PPOBatch:
    """Finished samples: token ids of prompts and responses, and one reward each."""

    prompts: Sequence[Sequence[int]]
    responses: Sequence[Sequence[int]]
    rewards: Sequence[float]
    groups: Sequence[int] | None = None
    """Samples with the same number answer the same prompt; None: each stands alone."""
    logprobs: Sequence[Sequence[float]] | None = None
    """The sampling engine's log-prob of each response token, for the metrics of mismatch and their
    limits; None: there are none. The ratio's old policy is the actor at the start of the update in
    any case."""
    baselines: Sequence[float] | None = None
    """The reward of the prompt's greedy answer, one for each sample; remax compares with it."""

    learned: Sequence[Sequence[bool]] | None = None
    """Of each response token, whether the model made it: what an environment or a tool said is read
    and not learned; None: it made all."""

    @classmethod
    def of(cls, samples: Sequence[Sample]) -> PPOBatch:
        """Those of a `RolloutWorker` or a buffer, with all that they carry."""
        all_learned = all(bool(sample.learned.all()) for sample in samples)
        return cls(
            prompts=[sample.prompt_ids.tolist() for sample in samples],
            responses=[sample.response_ids.tolist() for sample in samples],
            rewards=[sample.reward for sample in samples],
            groups=[sample.group for sample in samples],
            logprobs=[sample.logprobs.tolist() for sample in samples],
            learned=None if all_learned else [sample.learned.tolist() for sample in samples],
        )


class PPOTrainer:
    """PPO or GRPO updates of one model in this process, on Megatron-Core.

    Args:
        model_name: Hugging Face folder with config.json, safetensors and tokenizer.
        optimizer: "adam", the one there is.
        lr: learning rate of the policy; `critic_lr` of the value model.
        kl_coef: KL penalty per token against the starting policy, in the reward; 0 is off.
        clip_range: half-width of PPO's clip.
        adv_estimator: "gae" (with a value model), "grpo", "rloo" or another of
            algorithm.adv_estimator's.
        policy_loss: "ppo", "gspo" or another of algorithm.policy_loss's.
        mini_batch_size: samples per optimizer step; None: the whole batch.

    Raises ConfigError for a folder or a setting that cannot be used.
    """

    def __init__(
        self,
        model_name: str,
        optimizer: str = "adam",
        lr: float = 1e-6,
        kl_coef: float = 0.05,
        clip_range: float = 0.2,
        *,
        critic_lr: float | None = None,
        adv_estimator: str = "gae",
        policy_loss: str = "ppo",
        ppo_epochs: int = 1,
        mini_batch_size: int | None = None,
        micro_batch_size: int = 8,
        temperature: float = 1.0,
        dtype: str = "float32",
        seed: int = 0,
    ) -> None:
        if optimizer != "adam":
            raise ConfigError(f"optimizer is {optimizer!r}; known: adam")
        config = Config()
        config.run.seed = seed
        config.actor.model.path = model_name
        config.actor.model.dtype = config.critic.model.dtype = config.reference.model.dtype = dtype
        config.actor.optimizer.lr = lr
        config.critic.optimizer.lr = critic_lr if critic_lr is not None else lr
        config.rollout.temperature = temperature
        algorithm = config.algorithm
        algorithm.adv_estimator, algorithm.kl_coef = adv_estimator, kl_coef
        algorithm.policy_loss = policy_loss
        algorithm.clip_ratio, algorithm.ppo_epochs = clip_range, ppo_epochs
        algorithm.micro_batch_size = micro_batch_size
        if mini_batch_size is not None:
            algorithm.global_batch_size = mini_batch_size
        config.rollout.engine = "transformers"  # the one without rules of its own: none is made
        self._mini_batch_size = mini_batch_size
        self._config = config
        self._run = _build(config)

    def update(self, batch: PPOBatch | Sequence[Sample]) -> dict[str, float]:
        """One PPO step on finished samples; returns the metrics of the training run's names.

        Raises ConfigError, naming the sample, for lists that do not have one length, a prompt or
        response without tokens, a token that the model does not have, a reward that is not finite,
        and no two samples of a group where the estimator compares them.
        """
        from megarl.algorithms.advantages import estimator
        from megarl.train.phases import compute_advantages, measure, update

        batch = batch if isinstance(batch, PPOBatch) else PPOBatch.of(batch)
        check_batch(
            batch, self._run.shape.vocab_size, estimator(self._config.algorithm.adv_estimator)
        )
        table, run = _table(batch), self._run
        run.config.algorithm.global_batch_size = self._mini_batch_size or len(table)
        rows = zip(batch.prompts, batch.responses, strict=True)
        tokens = {row: torch.tensor([*p, *r]) for row, (p, r) in enumerate(rows)}
        given = batch.logprobs or [[0.0] * len(r) for r in batch.responses]
        sampled = {row: torch.tensor(list(values)) for row, values in enumerate(given)}
        source = RowMap((0,) * len(table))
        masks = dict(enumerate(map(torch.tensor, batch.learned))) if batch.learned else None
        scored = measure(run, table, tokens, sampled, source, learned=masks)
        if batch.logprobs is None:
            scored.rollout_logprobs = None
        metrics = update(run, compute_advantages(run, scored))
        run.step += 1
        run.books.phases.pop()
        return metrics

    def save(self, folder: str | Path) -> None:
        """Write the policy as a Hugging Face folder."""
        from megarl.models.transformer_config import torch_dtype
        from megarl.roles.export import export_hf

        run = self._run
        dtype = torch_dtype(self._config.actor.model.dtype)
        export_hf(run.universe, run.actor, run.shape, dtype, folder, run.actor_path)

    def weight_transfer(self, servers: Sequence[Server], **options: Any) -> WeightTransfer:
        """The way from the policy to vLLM servers; see megarl/transfer/README.md.

        options: those of WeightTransfer but the type on the wire, which is the policy's.
        """
        from megarl.models.transformer_config import torch_dtype
        from megarl.transfer.trainer import WeightTransfer

        run, wire = self._run, torch_dtype(self._config.actor.model.dtype)
        return WeightTransfer(
            run.universe, run.shape, run.actor, servers, wire_dtype=wire, **options
        )

    def close(self) -> None:
        """Leave torch.distributed; nothing may be called after, but a new trainer may be made."""
        self._run.universe.close()
        leave_pool()


def check_batch(batch: PPOBatch, vocab_size: int, chosen: Estimator | None = None) -> None:
    """ConfigError for samples that cannot be learned from, naming the sample where there is one.

    chosen: the estimator that is to read them; None: any.
    """
    count = len(batch.rewards)
    sizes = {"prompts": len(batch.prompts), "responses": len(batch.responses), "rewards": count}
    optional = {
        "groups": batch.groups,
        "logprobs": batch.logprobs,
        "baselines": batch.baselines,
        "learned": batch.learned,
    }
    sizes |= {name: len(given) for name, given in optional.items() if given is not None}
    if len(set(sizes.values())) != 1 or count == 0:
        raise ConfigError(f"PPOBatch: lists of one length, at least 1, are needed: {sizes}")
    for row, (prompt, response) in enumerate(zip(batch.prompts, batch.responses, strict=True)):
        if not len(prompt) or not len(response):
            raise ConfigError(
                f"PPOBatch: sample {row} has {len(prompt)} prompt and {len(response)} response "
                "tokens: both need one at least"
            )
        tokens = (*prompt, *response)
        odd = next((t for t in tokens if isinstance(t, str) or not 0 <= t < vocab_size), None)
        if odd is not None:
            raise ConfigError(
                f"PPOBatch: sample {row} has token {odd!r}; the model's are the numbers 0 to "
                f"{vocab_size - 1}"
            )
        if not math.isfinite(batch.rewards[row]):
            raise ConfigError(f"PPOBatch: the reward of sample {row} is {batch.rewards[row]}")
        if batch.logprobs is not None and len(batch.logprobs[row]) != len(response):
            raise ConfigError(
                f"PPOBatch: sample {row} has {len(batch.logprobs[row])} logprobs for "
                f"{len(response)} response tokens: give one each"
            )
        if batch.learned is not None and len(batch.learned[row]) != len(response):
            raise ConfigError(
                f"PPOBatch: sample {row} has {len(batch.learned[row])} marks in learned for "
                f"{len(response)} response tokens: give one each"
            )
    alone = batch.groups is None or len(set(batch.groups)) == count
    if chosen is not None and chosen.needs_groups and alone:
        raise ConfigError(
            f"PPOBatch: adv_estimator {chosen.name} compares the samples of a prompt, and no two "
            "samples share a number in groups: every advantage would be 0"
        )
    if chosen is not None and chosen.needs_greedy and batch.baselines is None:
        raise ConfigError(
            f"PPOBatch: adv_estimator {chosen.name} compares with a greedy answer, and there are "
            "no baselines: give the reward of one for each sample"
        )


def _table(batch: PPOBatch) -> RowTable:
    count = len(batch.rewards)
    groups = list(range(count)) if batch.groups is None else list(batch.groups)
    return RowTable(
        group=torch.tensor(groups, dtype=torch.int32),
        prompt_length=torch.tensor([len(p) for p in batch.prompts], dtype=torch.int32),
        response_length=torch.tensor([len(r) for r in batch.responses], dtype=torch.int32),
        reward=torch.tensor([float(reward) for reward in batch.rewards]),
        finished=torch.ones(count, dtype=torch.bool),
        weight_version=torch.zeros(count, dtype=torch.int32),
        source=("",) * count,
        learned_length=None
        if batch.learned is None
        else torch.tensor([sum(marks) for marks in batch.learned], dtype=torch.int32),
        baseline=None if batch.baselines is None else torch.tensor(list(batch.baselines)).float(),
    )


def _plan(config: Config) -> RunPlan:
    """The checks of a training run, as far as they are of settings and models."""
    from megarl.validate.choices import check_names, check_numbers
    from megarl.validate.engines import check_device
    from megarl.validate.files import check_folders
    from megarl.validate.meshes import make_plan
    from megarl.validate.models import read_models

    check_device()
    check_names(config)
    check_numbers(config)
    plan = make_plan(config, read_models(config, "train"), 1, "train")
    check_folders(config, plan, "train")
    return plan


def _build(config: Config) -> Learner:
    """The roles of a run in one process, without rollout engine and data."""
    from megarl.runtime.environment import this_launch
    from megarl.train.main import prepare_process

    try:
        plan = _plan(config)
    except ConfigError as error:
        text = str(error)
        for key, argument in ARGUMENT_OF.items():
            text = text.replace(key, argument)
        raise type(error)(text) from None
    launch = this_launch()
    if launch.world_size != 1:
        raise ConfigError(f"PPOTrainer is for one process; {launch.world_size} were started")
    prepare_process(launch)
    from megarl.mesh.control import Control
    from megarl.mesh.universe import Pool, Universe
    from megarl.train.build import build_learner

    universe = Universe(launch, [Pool("pool0", (0,))], config.run.timeout_s)
    return build_learner(config, plan, universe, Control(universe, lambda *_: None))

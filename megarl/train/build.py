"""Builds a run from a validated config: universe, then Megatron roles, then rollout engines."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from megarl.algorithms.evaluation import pass_at_ks
from megarl.algorithms.kl import kl_controller
from megarl.algorithms.options import correction_options, policy_loss_options
from megarl.checkpoint.folder import goes_on
from megarl.config.schema import Config, ModelConfig, OptimizerConfig
from megarl.data.dataset import Dataset
from megarl.data.order import PromptOrder
from megarl.data.prompts import configured_prompts
from megarl.data.stop_tokens import stop_tokens
from megarl.layout import hf_tensors, megatron_placement
from megarl.mesh.control import Control
from megarl.mesh.layout import megatron_slice
from megarl.mesh.role_mesh import GroupFactory, RoleMesh
from megarl.mesh.run_plan import RolePlan, RunPlan
from megarl.mesh.universe import Universe
from megarl.models.engine import MegatronEngine, layernorm_names
from megarl.models.transformer_config import torch_dtype
from megarl.observe.records import keep_plan
from megarl.rewards.load import configured_rewards, judge_name
from megarl.roles.actor import Actor, PolicyLossSettings, PolicyRole
from megarl.roles.batching import MicroBatchLimit
from megarl.roles.critic import Critic
from megarl.roles.reward_model import RewardModel
from megarl.train.build_rollout import decoder, make_ahead, make_rollout, make_weight_sync
from megarl.train.evaluate import EvaluationSpec
from megarl.train.learner import Learner
from megarl.train.run import Run
from megarl.train.scoring import Scorer
from megarl.train.shaping import RewardShaping
from megarl.train.stage import Books, open_books
from megarl.types import Prompt, SamplingSpec
from megarl.weights.load import load_weights
from megarl.weights.source import FreshWeights, SafetensorsFolder, WeightSource


class Builder:
    """Holds what the parts of a run share while they are built."""

    def __init__(self, config: Config, plan: RunPlan, universe: Universe) -> None:
        self.config, self.plan, self.universe = config, plan, universe
        self._factory = GroupFactory(config.run.timeout_s)
        self._meshes: dict[tuple[Any, ...], RoleMesh] = {}

    def role(
        self,
        name: str,
        kind: type[Any],
        role: RolePlan,
        model: ModelConfig,
        optimizer: OptimizerConfig | None,
        total_steps: int,
    ) -> Any:
        """A Megatron role; its mesh and engine exist on the ranks of its pool only."""
        pool = self.universe.pool_of(role.ranks)
        algorithm = self.config.algorithm
        dynamic = algorithm.use_dynamic_batch_size
        limit = MicroBatchLimit(
            None if dynamic else algorithm.micro_batch_size,
            algorithm.max_tokens_per_gpu if dynamic else None,
            algorithm.sequence_packing,
        )
        mesh = engine = None
        if self.universe.pool == pool:
            mesh = RoleMesh(name, role.layout, self._factory)
            engine = MegatronEngine(
                role.hf,
                role.shape,
                mesh,
                torch_dtype(model.dtype),
                recompute_granularity=model.recompute_granularity,
                optimizer=optimizer,
                total_steps=total_steps,
            )
            source = weight_source(role, model, self.config.run.seed, name)
            slice_ = megatron_slice(role.layout, mesh.rank, layernorm_names())
            placement = megatron_placement(role.shape, slice_, padded_vocab=False)
            load_weights(source, placement, engine.parameters())
            engine.weights_changed()
        return kind(name, self.universe, pool, role.layout, limit, mesh, engine)

    def scorer(self, control: Control, tokenizer: Any) -> Scorer:
        """The reward, with its model where there is one."""
        config, role, model = self.config.reward, self.plan.reward, None
        episodes = self.config.environment.function is not None
        if role is not None:
            model = self.role("reward", RewardModel, role, config.model, None, 1)
        return Scorer(
            self.universe,
            control,
            configured_rewards(config, self.config.data.label_column, episodes=episodes),
            model,
            config.model_coef,
            config.missing_eos_penalty,
            judges=judge_name(config, episodes=episodes) is not None,
            overlap=config.overlap,
            decode=decoder(tokenizer),
        )


def weight_source(role: RolePlan, model: ModelConfig, seed: int, name: str) -> WeightSource:
    """Where a role's weights come from.

    A role with a scalar head that starts from a folder without one gets a fresh head (zeros).
    """
    shapes = hf_tensors(role.shape)
    if model.fresh:
        return FreshWeights(shapes, seed, float(role.hf.get("initializer_range", 0.02)))
    folder = SafetensorsFolder(role.path)
    head = role.shape.scalar_head
    if head is None or head in folder.names:
        return folder
    return _WithFreshHead(folder, head, FreshWeights(shapes, seed))


class _WithFreshHead:
    def __init__(self, folder: SafetensorsFolder, head: str, fresh: FreshWeights) -> None:
        self._folder, self._head, self._fresh = folder, head, fresh

    def read(self, tensor: str, box: Any) -> torch.Tensor:
        return (self._fresh if tensor == self._head else self._folder).read(tensor, box)


def build_run(config: Config, plan: RunPlan, universe: Universe, control: Control) -> Run:
    """The whole run on this rank."""
    control.enter("build")
    builder = Builder(config, plan, universe)
    data = config.data
    batch = data.rollout_batch_size * data.n_samples_per_prompt
    per_step = config.algorithm.ppo_epochs * -(-batch // config.algorithm.global_batch_size)
    parts = learner_parts(builder, control, per_step)
    for role in (parts["actor"], parts["critic"]):
        if role is not None:  # before vLLM looks how much memory there is
            role.offload()
    tokenizer = AutoTokenizer.from_pretrained(plan.actor.path)
    scorer = builder.scorer(control, tokenizer)
    rollout = make_rollout(config, plan, universe, tokenizer, plan.actor.path)
    prompts = read_prompts(config, tokenizer, data.train_path)
    actor, books = parts["actor"], open_books(config, universe, "train")
    sync = make_weight_sync(config, plan, universe, control, actor, rollout, prompts)
    keep_plan(Path(config.run.dir), universe.rank, sync.text())
    if books.logger is not None and not goes_on(config):
        counts = {"data/prompts": len(prompts), "data/prompts_dropped": prompts.dropped}
        books.logger.log(counts, 0)
    sampling = make_sampling(config, plan, tokenizer)
    order = PromptOrder(len(prompts), data.rollout_batch_size, config.run.seed)
    return Run(
        **parts,
        books=books,
        rollout=rollout,
        weight_sync=sync,
        scorer=scorer,
        shaping=RewardShaping(config.reward, data.max_response_length),
        prompts=prompts,
        eval_prompts=read_prompts(config, tokenizer, data.eval_path)[: data.eval_size],
        order=order,
        ahead=make_ahead(config, rollout, prompts, order, sampling),
        sampling=sampling,
        evaluation=make_evaluation(config, sampling),
    )


def build_learner(config: Config, plan: RunPlan, universe: Universe, control: Control) -> Learner:
    """The Megatron roles alone, for samples that come from elsewhere."""
    builder = Builder(config, plan, universe)
    return Learner(**learner_parts(builder, control, 1), books=Books(None, None))


def learner_parts(builder: Builder, control: Control, per_step: int) -> dict[str, Any]:
    """The fields of a Learner but its books; per_step: optimizer steps of a training step."""
    config, plan, algorithm = builder.config, builder.plan, builder.config.algorithm
    critic = reference = None
    actor = builder.role(
        "actor",
        Actor,
        plan.actor,
        config.actor.model,
        config.actor.optimizer,
        max(config.run.steps - algorithm.critic_warmup, 1) * per_step,
    )
    if plan.critic is not None:
        critic = builder.role(
            "critic",
            Critic,
            plan.critic,
            config.critic.model,
            config.critic.optimizer,
            config.run.steps * per_step,
        )
    if plan.reference is not None:
        reference = builder.role(
            "reference", PolicyRole, plan.reference, config.reference.model, None, 1
        )
    return {
        "config": config,
        "actor_path": plan.actor.path,
        "shape": plan.actor.shape,
        "universe": builder.universe,
        "control": control,
        "actor": actor,
        "critic": critic,
        "reference": reference,
        "policy_settings": policy_settings(config),
        "correction": correction_options(algorithm),
        "kl_controller": kl_controller(
            algorithm.kl_ctrl.type,
            kl_coef=algorithm.kl_coef,
            target_kl=algorithm.kl_ctrl.target_kl,
            horizon=algorithm.kl_ctrl.horizon,
        ),
    }


def make_sampling(config: Config, plan: RunPlan, tokenizer: Any) -> SamplingSpec:
    """How training rollouts are sampled."""
    return SamplingSpec(
        temperature=config.rollout.temperature,
        top_p=config.rollout.top_p,
        top_k=config.rollout.top_k,
        max_response_length=config.data.max_response_length,
        stop_token_ids=stop_tokens(plan.actor.path, tokenizer),
    )


def make_evaluation(config: Config, sampling: SamplingSpec) -> EvaluationSpec:
    """How held-out prompts are answered; `sampling` is that of training."""
    settings = config.evaluation
    return EvaluationSpec(
        greedy=sampling.greedy(),
        sampled=replace(
            sampling, temperature=settings.temperature, top_p=settings.top_p, top_k=settings.top_k
        ),
        num_samples=settings.n_samples,
        pass_at=pass_at_ks(settings.n_samples, settings.pass_at),
        run_seed=config.run.seed,
        success_reward=config.reward.success_reward,
    )


def read_prompts(config: Config, tokenizer: Any, path: str) -> Dataset[Prompt]:
    """The prompts of one file; none for an empty path."""
    if not path:
        return Dataset((), 0)
    return configured_prompts(config.data, path, tokenizer)


def policy_settings(config: Config) -> PolicyLossSettings:
    """What the policy loss is made of."""
    algorithm = config.algorithm
    return PolicyLossSettings(
        policy_loss=algorithm.policy_loss,
        options=policy_loss_options(algorithm),
        entropy_coef=algorithm.entropy_coef,
        kl_loss_coef=algorithm.kl_loss_coef if algorithm.use_kl_loss else 0.0,
        kl_loss_type=algorithm.kl_loss_type,
        loss_agg_mode=algorithm.loss_agg_mode,
        norm_length=config.data.max_response_length,
        ppo_epochs=algorithm.ppo_epochs,
        temperature=config.rollout.temperature,
    )

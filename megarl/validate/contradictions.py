"""Settings that are right by themselves and make no sense together."""

from __future__ import annotations

from megarl.algorithms.advantages import estimator
from megarl.algorithms.options import policy_loss_options
from megarl.algorithms.policy import policy_loss
from megarl.config.schema import Config, MeshConfig, OptimizerConfig
from megarl.errors import ConfigError
from megarl.mesh.run_plan import RunPlan
from megarl.validate.rewards import check_sample_choice


def check_contradictions(config: Config) -> None:
    """ConfigError for the first contradiction of a training run."""
    _check_estimator(config)
    _check_policy_loss(config)
    _check_kl(config)
    _check_sampling(config)
    check_sample_choice(config)
    check_schedule(config.actor.optimizer, "actor")
    if needs_critic(config):
        check_schedule(config.critic.optimizer, "critic")


def check_alias(config: Config, plan: RunPlan) -> None:
    """ConfigError where rollout weights could not be the actor's own, or would change in use."""
    if not config.weight_sync.alias:
        return
    ours, theirs = config.actor.model.dtype, config.rollout.dtype or config.actor.model.dtype
    if ours != theirs:
        raise ConfigError(
            f"weight_sync.alias is true, actor.model.dtype is {ours} and rollout.dtype {theirs}: "
            "weights of one type are no views of the other; set rollout.dtype=null, or alias=false"
        )
    if not plan.rollout_ranks:
        raise ConfigError(
            "weight_sync.alias is true and rollout.engine is server: servers have weights of their "
            "own; set it to false"
        )
    if plan.rollout_ranks != plan.actor.ranks:
        raise ConfigError(
            f"weight_sync.alias is true, the actor is on ranks {list(plan.actor.ranks)} and the "
            f"rollout on {list(plan.rollout_ranks)}: only ranks that hold both can share memory, "
            "and they must take turns; put both on the same ranks, or set weight_sync.alias=false"
        )
    if config.rollout.enable_sleep_mode:
        raise ConfigError(
            "weight_sync.alias and rollout.enable_sleep_mode are both true: vLLM would give back "
            "memory that is the actor's; set one of them to false"
        )


def check_top_k(key: str, top_k: int) -> None:
    """ConfigError for a number of candidates that no engine takes."""
    if top_k == 0 or top_k < -1:
        raise ConfigError(f"{key} is {top_k}: give 1 or more, or -1 for all")


def check_schedule(optimizer: OptimizerConfig, role: str) -> None:
    """ConfigError for a learning rate that could not follow its schedule."""
    if optimizer.min_lr > optimizer.lr:
        raise ConfigError(
            f"{role}.optimizer.min_lr {optimizer.min_lr} is above its lr {optimizer.lr}: the rate "
            "falls from lr to min_lr; lower min_lr"
        )
    warmup, decay = optimizer.lr_warmup_steps, optimizer.lr_decay_steps
    if decay is not None and warmup >= decay:
        raise ConfigError(
            f"{role}.optimizer.lr_warmup_steps {warmup} leaves nothing of lr_decay_steps {decay}: "
            "make it less, or the other null (all of the run)"
        )


def check_mesh_settings(mesh: MeshConfig, key: str) -> None:
    """ConfigError for a mesh that contradicts itself."""
    vpp, pp = mesh.virtual_pipeline_model_parallel_size, mesh.pipeline_model_parallel_size
    if vpp is not None and vpp < 1:
        raise ConfigError(
            f"{key}.virtual_pipeline_model_parallel_size is {vpp}: give 1 or more chunks per "
            "stage, or null"
        )
    if vpp is not None and vpp > 1 and pp < 2:
        raise ConfigError(
            f"{key}: virtual_pipeline_model_parallel_size {vpp} needs a pipeline, and "
            f"pipeline_model_parallel_size is {pp}: set that to 2 or more, or the other to null"
        )


def needs_critic(config: Config) -> bool:
    """Whether the advantages need a critic's values."""
    return estimator(config.algorithm.adv_estimator).needs_values


def needs_reference(config: Config) -> bool:
    """Whether any term needs the reference's log-probs."""
    return config.algorithm.kl_coef > 0 or config.algorithm.use_kl_loss


def _check_estimator(config: Config) -> None:
    algorithm, samples = config.algorithm, config.data.n_samples_per_prompt
    if estimator(algorithm.adv_estimator).needs_groups and samples < 2:
        raise ConfigError(
            f"algorithm.adv_estimator {algorithm.adv_estimator} compares the samples of a prompt, "
            f"and data.n_samples_per_prompt is {samples}: every advantage would be 0; sample 2 or "
            "more, or take gae"
        )
    if algorithm.critic_warmup and not needs_critic(config):
        raise ConfigError(
            f"algorithm.critic_warmup is {algorithm.critic_warmup}, and "
            f"{algorithm.adv_estimator} has no critic: set it to 0, or take gae"
        )


def _check_policy_loss(config: Config) -> None:
    name, ranks = config.algorithm.policy_loss, config.actor.mesh.context_parallel_size
    policy_loss_options(config.algorithm)
    if policy_loss(name).needs_sequences and ranks > 1:
        raise ConfigError(
            f"algorithm.policy_loss {name} averages over whole responses, and actor.mesh has "
            f"context_parallel_size {ranks}, which cuts them: set it to 1, or take ppo or cispo"
        )


def _check_kl(config: Config) -> None:
    algorithm = config.algorithm
    if algorithm.adv_estimator == "grpo_process" and algorithm.kl_coef > 0:
        raise ConfigError(
            "algorithm.adv_estimator is grpo_process and algorithm.kl_coef "
            f"{algorithm.kl_coef}: it compares the rewards of steps, and a penalty on the tokens "
            "between them would be lost; set kl_coef to 0, and use_kl_loss to true"
        )
    if algorithm.use_kl_loss and algorithm.kl_loss_coef == 0:
        raise ConfigError(
            "algorithm.use_kl_loss is true and algorithm.kl_loss_coef is 0: the reference would "
            "be computed for nothing; give a weight, or set use_kl_loss to false"
        )
    if algorithm.kl_ctrl.type == "adaptive" and algorithm.kl_coef == 0:
        raise ConfigError(
            "algorithm.kl_ctrl.type is adaptive and algorithm.kl_coef is 0: the controller "
            "multiplies it, so it would stay 0; start above 0, or take kl_ctrl.type=fixed"
        )


def _check_sampling(config: Config) -> None:
    rollout, observe = config.rollout, config.observe
    limited = observe.logprob_diff_mean_limit > 0 or observe.logprob_diff_p99_limit > 0
    check_top_k("rollout.top_k", rollout.top_k)
    if limited and (rollout.top_p < 1 or rollout.top_k > 0):
        key, value = ("top_p", rollout.top_p) if rollout.top_p < 1 else ("top_k", rollout.top_k)
        raise ConfigError(
            f"rollout.{key} is {value}: the engine then samples from other probabilities than the "
            "trainer computes, and the limits of observe.logprob_diff_mean_limit "
            f"({observe.logprob_diff_mean_limit}) and logprob_diff_p99_limit "
            f"({observe.logprob_diff_p99_limit}) would stop the run; take top_p=1 and top_k=-1, or "
            "set both limits to 0"
        )

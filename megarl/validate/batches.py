"""Batch sizes against each other, the replicas and the model's longest sequence."""

from __future__ import annotations

from megarl.config.schema import Config
from megarl.errors import ConfigError
from megarl.mesh.run_plan import RunPlan


def check_groups(config: Config) -> None:
    """ConfigError unless a step's samples fill whole optimizer batches of whole groups."""
    data, algorithm = config.data, config.algorithm
    batch, group = algorithm.global_batch_size, data.n_samples_per_prompt
    samples = data.rollout_batch_size * group
    if samples % batch:
        raise ConfigError(
            f"algorithm.global_batch_size {batch} (samples) does not divide "
            f"data.rollout_batch_size {data.rollout_batch_size} x data.n_samples_per_prompt "
            f"{group} = {samples} samples of a step: take {_fitting(samples, batch, group)}"
        )
    if batch % group:
        raise ConfigError(
            f"data.n_samples_per_prompt {group} does not divide algorithm.global_batch_size "
            f"{batch}: the samples of a prompt stay in one optimizer step; take "
            f"{_fitting(samples, batch, group)} for global_batch_size"
        )
    check_micro_batches(config)


def check_micro_batches(config: Config, purpose: str = "train") -> None:
    """ConfigError where no micro-batch could hold the longest sample."""
    data, algorithm = config.data, config.algorithm
    longest = data.max_prompt_length + data.max_response_length
    if not algorithm.use_dynamic_batch_size:
        return
    if purpose == "pretrain":
        if algorithm.max_tokens_per_gpu <= data.indexed.seq_length:
            raise ConfigError(
                f"algorithm.max_tokens_per_gpu {algorithm.max_tokens_per_gpu} cannot hold one "
                f"sample of data.indexed.seq_length {data.indexed.seq_length} + 1 tokens: raise it"
            )
    elif algorithm.max_tokens_per_gpu < longest:
        raise ConfigError(
            f"algorithm.max_tokens_per_gpu {algorithm.max_tokens_per_gpu} cannot hold one sample "
            f"of data.max_prompt_length {data.max_prompt_length} + data.max_response_length "
            f"{data.max_response_length} = {longest} tokens: raise it to at least {longest}"
        )


def check_replicas(config: Config, plan: RunPlan) -> None:
    """ConfigError where rollout replicas or data-parallel ranks would stand idle."""
    data, size = config.data, plan.replica.size
    replicas = len(plan.rollout_ranks) // size  # 0 where servers take what they can
    if data.rollout_batch_size < replicas:
        raise ConfigError(
            f"data.rollout_batch_size {data.rollout_batch_size} (prompts) is less than the "
            f"{replicas} rollout replicas ({len(plan.rollout_ranks)} ranks / {size} of a replica): "
            f"take at least {replicas} prompts"
        )
    batch, group = config.algorithm.global_batch_size, data.n_samples_per_prompt
    for name in ("actor", "critic"):
        dp = plan.roles[name].layout.dp if name in plan.roles else 1
        if batch // group < dp:
            raise ConfigError(
                f"algorithm.global_batch_size {batch} holds {batch // group} prompts of "
                f"data.n_samples_per_prompt {group} samples, less than the {name}'s {dp} "
                f"data-parallel ranks: the samples of a prompt stay on one; take at least "
                f"{dp * group}"
            )


def check_lengths(config: Config, plan: RunPlan) -> None:
    """ConfigError where prompt and response may be longer than the model's positions."""
    data = config.data
    longest = data.max_prompt_length + data.max_response_length
    allowed = plan.actor.hf.get("max_position_embeddings")
    if isinstance(allowed, int) and longest > allowed:
        raise ConfigError(
            f"data.max_prompt_length {data.max_prompt_length} + data.max_response_length "
            f"{data.max_response_length} = {longest} tokens; the model in {plan.actor.path} takes "
            f"max_position_embeddings {allowed}: shorten them"
        )
    window = plan.actor.hf.get("sliding_window")
    if plan.actor.hf.get("use_sliding_window", True) and window and longest > window:
        raise ConfigError(
            f"data.max_prompt_length {data.max_prompt_length} + data.max_response_length "
            f"{data.max_response_length} = {longest} tokens; the model in {plan.actor.path} has a "
            f"sliding_window of {window}, which Megatron's layers here do not have: shorten them"
        )


def _fitting(samples: int, wanted: int, group: int) -> str:
    """The batch sizes next to the wanted one that divide the samples, in whole groups."""
    fits = [n for n in range(group, samples + 1, group) if samples % n == 0]
    below = [n for n in fits if n <= wanted][-1:]
    above = [n for n in fits if n > wanted][:1]
    return " or ".join(map(str, below + above))

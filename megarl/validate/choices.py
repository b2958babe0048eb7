"""Settings that are wrong by themselves: unknown names, numbers out of range."""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from operator import attrgetter
from typing import Any, NamedTuple, get_args

from megarl.algorithms.advantages import estimator
from megarl.algorithms.corrections import ROLLOUT_IS, ROLLOUT_IS_MODES, ROLLOUT_RS
from megarl.algorithms.kl import KL_KINDS
from megarl.algorithms.losses import LossAggMode
from megarl.algorithms.policy import policy_loss
from megarl.config.schema import Config
from megarl.errors import ConfigError

_DTYPES = ("float32", "bfloat16")
_RECOMPUTE = (None, "selective", "full")
_LR_DECAY = ("constant", "linear", "cosine", "inverse-square-root")

NAMES: dict[str, Sequence[str | None]] = {
    "actor.model.dtype": _DTYPES,
    "critic.model.dtype": _DTYPES,
    "reference.model.dtype": _DTYPES,
    "reward.model.dtype": _DTYPES,
    "actor.model.recompute_granularity": _RECOMPUTE,
    "critic.model.recompute_granularity": _RECOMPUTE,
    "reference.model.recompute_granularity": _RECOMPUTE,
    "reward.model.recompute_granularity": _RECOMPUTE,
    "actor.optimizer.lr_decay_style": _LR_DECAY,
    "critic.optimizer.lr_decay_style": _LR_DECAY,
    "checkpoint.resume_mode": ("auto", "previous", "never"),
    "rollout.engine": ("vllm", "server", "transformers", "scripted"),
    "rollout.dtype": (None, *_DTYPES),
    "algorithm.kl_ctrl.type": ("fixed", "adaptive"),
    "algorithm.kl_loss_type": KL_KINDS,
    "algorithm.kl_penalty": tuple(kind for kind in KL_KINDS if not kind.endswith("+")),
    "algorithm.loss_agg_mode": get_args(LossAggMode),
    "algorithm.filter_groups.metric": ("accuracy", "reward"),
    "algorithm.rollout_is": (None, *ROLLOUT_IS),
    "algorithm.rollout_is_mode": ROLLOUT_IS_MODES,
    "algorithm.rollout_rs": (None, *ROLLOUT_RS),
    "reward.length_penalty": (None, "group", "cosine"),
}
"""Key -> the names it may have."""


class Range(NamedTuple):
    """Numbers that a setting may be; the ends belong to it unless they are open."""

    low: float
    high: float = math.inf
    open_low: bool = False
    open_high: bool = False

    def holds(self, value: float) -> bool:
        """Whether value is in the range; NaN never is."""
        above = value > self.low if self.open_low else value >= self.low
        below = value < self.high if self.open_high else value <= self.high
        return above and below

    def __str__(self) -> str:
        if self.low == -math.inf:
            return "that is finite"
        low = f"above {self.low:.10g}" if self.open_low else f"of at least {self.low:.10g}"
        if self.high == math.inf:
            return low
        return f"{low} and {'below' if self.open_high else 'at most'} {self.high:.10g}"


_COUNT, _NATURAL = Range(1), Range(0)
_FINITE = Range(-math.inf, math.inf, open_low=True, open_high=True)
_POSITIVE, _SHARE = Range(0, open_low=True), Range(0, 1, open_low=True)

RANGES: dict[str, Range] = {
    "run.steps": _COUNT,
    "run.seed": Range(0, 2**32 - 1),
    "run.eval_interval": _NATURAL,
    "run.timeout_s": _POSITIVE,
    "run.stall_timeout_s": _POSITIVE,
    **{
        f"{role}.optimizer.{name}": limits
        for role in ("actor", "critic")
        for name, limits in {
            "lr": _NATURAL,
            "min_lr": _NATURAL,
            "lr_warmup_steps": _NATURAL,
            "lr_decay_steps": _COUNT,
            "weight_decay": _NATURAL,
            "adam_beta1": Range(0, 1, open_high=True),
            "adam_beta2": Range(0, 1, open_high=True),
            "adam_eps": _POSITIVE,
            "clip_grad": _NATURAL,
        }.items()
    },
    "rollout.tensor_parallel_size": _COUNT,
    "rollout.pipeline_parallel_size": _COUNT,
    "rollout.max_staleness": _NATURAL,
    "rollout.launch.replicas": _NATURAL,
    "rollout.launch.tensor_parallel_size": _COUNT,
    "rollout.launch.ready_timeout_s": _POSITIVE,
    "rollout.client.max_in_flight": _COUNT,
    "rollout.client.timeout_s": _POSITIVE,
    "rollout.client.connect_timeout_s": _POSITIVE,
    "rollout.client.patience_s": _POSITIVE,
    "rollout.client.max_attempts": _COUNT,
    "rollout.client.hedge_factor": _NATURAL,
    "rollout.temperature": _POSITIVE,
    "rollout.top_p": _SHARE,
    "rollout.kv_cache_megabytes": _COUNT,
    "rollout.gpu_memory_utilization": _SHARE,
    "rollout.max_num_seqs": _COUNT,
    "rollout.max_num_batched_tokens": _COUNT,
    "data.max_prompt_length": _COUNT,
    "data.max_response_length": _COUNT,
    "data.rollout_batch_size": _COUNT,
    "data.n_samples_per_prompt": _COUNT,
    "data.eval_size": _COUNT,
    "data.indexed.seq_length": _COUNT,
    "algorithm.gamma": Range(0, 1),
    "algorithm.lam": Range(0, 1),
    "algorithm.kl_coef": _NATURAL,
    "algorithm.entropy_coef": _NATURAL,
    "algorithm.kl_ctrl.target_kl": _POSITIVE,
    "algorithm.kl_ctrl.horizon": _COUNT,
    "algorithm.kl_loss_coef": _NATURAL,
    "algorithm.tau_pos": _POSITIVE,
    "algorithm.tau_neg": _POSITIVE,
    "algorithm.clip_ratio": Range(0, 1, open_high=True),
    "algorithm.clip_ratio_low": Range(0, 1, open_high=True),
    "algorithm.clip_ratio_high": _NATURAL,
    "algorithm.clip_ratio_c": Range(1, open_low=True),
    "algorithm.value_clip": _POSITIVE,
    "algorithm.ppo_epochs": _COUNT,
    "algorithm.global_batch_size": _COUNT,
    "algorithm.micro_batch_size": _COUNT,
    "algorithm.max_tokens_per_gpu": _COUNT,
    "algorithm.critic_warmup": _NATURAL,
    "algorithm.clip_cov_ratio": _SHARE,
    "algorithm.kl_cov_ratio": _SHARE,
    "algorithm.ppo_kl_coef": _NATURAL,
    "algorithm.filter_groups.max_num_gen_batches": _COUNT,
    "algorithm.rollout_is_threshold": _POSITIVE,
    "algorithm.rollout_is_threshold_lower": _NATURAL,
    "algorithm.rollout_rs_threshold": _POSITIVE,
    "algorithm.rollout_rs_threshold_lower": _NATURAL,
    "algorithm.rollout_token_veto_threshold": Range(0, 1, open_low=True, open_high=True),
    "reward.overlong_buffer_len": _NATURAL,
    "reward.overlong_penalty_factor": _NATURAL,
    "reward.missing_eos_penalty": _NATURAL,
    "reward.function_coef": _FINITE,
    "reward.model_coef": _FINITE,
    "reward.length_penalty_coef": _FINITE,
    "reward.success_reward": _FINITE,
    "environment.max_turns": _COUNT,
    "environment.turn_timeout_s": _POSITIVE,
    "environment.workers": _COUNT,
    "evaluation.n_samples": _NATURAL,
    "evaluation.temperature": _POSITIVE,
    "evaluation.top_p": _SHARE,
    "checkpoint.save_interval": _NATURAL,
    "checkpoint.keep_last": _NATURAL,
    "checkpoint.keep_every": _NATURAL,
    "weight_sync.buffer_megabytes": _COUNT,
    "weight_sync.verify_interval": _NATURAL,
    "observe.logprob_diff_mean_limit": _NATURAL,
    "observe.logprob_diff_p99_limit": _NATURAL,
}
"""Key -> the numbers it may be; null is right where the schema allows it."""


def check_names(config: Config) -> None:
    """ConfigError for a name that nothing answers to, with the known ones."""
    for key, known in NAMES.items():
        value = attrgetter(key)(config)
        if value not in known:
            names = [name for name in known if name is not None]
            raise ConfigError(
                f"{key} is {value!r}: one of {', '.join(names)}"
                + (" or null" if None in known else "")
                + _did_you_mean(value, names)
            )
    estimator(config.algorithm.adv_estimator)
    policy_loss(config.algorithm.policy_loss)


def check_numbers(config: Config) -> None:
    """ConfigError for a number out of its range."""
    for key, limits in RANGES.items():
        value = attrgetter(key)(config)
        if value is not None and not limits.holds(value):
            raise ConfigError(f"{key} is {value}: give a number {limits}")


def _did_you_mean(value: Any, names: Sequence[str]) -> str:
    close = difflib.get_close_matches(str(value), names, n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""

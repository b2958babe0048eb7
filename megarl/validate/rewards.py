"""Settings of rewards, and of which samples are learned from, that make no sense together."""

from __future__ import annotations

import inspect
import math

from megarl.algorithms.advantages import estimator
from megarl.algorithms.options import correction_options
from megarl.algorithms.shaping import cosine_length_reward
from megarl.config.schema import Config
from megarl.errors import ConfigError
from megarl.rewards.load import MODEL, is_judged, judge_name


def check_rewards(config: Config) -> None:
    """ConfigError for rewards that would all be 0, and for shaping that cannot be done."""
    reward = config.reward
    if reward.function_coef == 0 and not (reward.model.path or reward.extra_functions):
        raise ConfigError(
            "reward.function_coef is 0, reward.model.path and reward.extra_functions are empty: "
            "every reward would be 0; give a weight, or a reward model"
        )
    for name, extra in reward.extra_functions.items():
        key = f"reward.extra_functions.{name}"
        if not math.isfinite(extra.coef):
            raise ConfigError(f"{key}.coef is {extra.coef}: give a number that is finite")
        if not extra.function:
            raise ConfigError(f"{key}.function is empty: name a reward, or drop {name}")
        if name in (judge_name(reward), MODEL):
            raise ConfigError(f"{key}: the name {name} is taken: choose another")
    if reward.clip and not (len(reward.clip) == 2 and reward.clip[0] < reward.clip[1]):
        raise ConfigError(f"reward.clip is {list(reward.clip)}: give [low, high] with low < high")
    longest = config.data.max_response_length
    if reward.overlong_buffer_len > longest:
        raise ConfigError(
            f"reward.overlong_buffer_len is {reward.overlong_buffer_len} tokens and "
            f"data.max_response_length {longest}: every response would be penalised; lower it"
        )
    _check_length_penalty(config)


def check_sample_choice(config: Config) -> None:
    """ConfigError for filters and corrections that contradict themselves or each other."""
    algorithm, samples = config.algorithm, config.data.n_samples_per_prompt
    correction_options(algorithm)
    filters = algorithm.filter_groups
    if not filters.enable:
        return
    if samples < 2:
        raise ConfigError(
            f"algorithm.filter_groups.enable is true and data.n_samples_per_prompt is {samples}: "
            "one sample never differs from others; sample 2 or more, or set it to false"
        )
    if filters.metric == "accuracy" and not is_judged(config):
        raise ConfigError(
            "algorithm.filter_groups.metric is accuracy, and a reward model alone decides: "
            "nothing says which answers are right; set it to reward, or give a reward.function"
        )


def _check_length_penalty(config: Config) -> None:
    reward = config.reward
    kind, options = reward.length_penalty, dict(reward.length_penalty_kwargs)
    if options and kind != "cosine":
        raise ConfigError(
            f"reward.length_penalty_kwargs is {options} and reward.length_penalty {kind}, which "
            "reads none: drop them, or take cosine"
        )
    known = [
        name
        for name, one in inspect.signature(cosine_length_reward).parameters.items()
        if one.kind is inspect.Parameter.KEYWORD_ONLY
    ]
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise ConfigError(
            f"reward.length_penalty_kwargs.{unknown[0]} is unknown: one of {', '.join(known)}"
        )
    if kind is not None and not is_judged(config):
        raise ConfigError(
            f"reward.length_penalty is {kind}, and a reward model alone decides: nothing says "
            "which answers are right; give a reward.function (function_coef 0: it only judges), "
            "or take overlong_buffer_len"
        )
    greedy = estimator(config.algorithm.adv_estimator).needs_greedy
    if kind == "group" and greedy:
        raise ConfigError(
            f"reward.length_penalty is group and algorithm.adv_estimator "
            f"{config.algorithm.adv_estimator}: its greedy answer has no group to be compared "
            "with; take cosine, or another estimator (rloo, grpo)"
        )

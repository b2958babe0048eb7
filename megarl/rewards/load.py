"""From what stands in the config to a reward function, with every mistake named before the run."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, cast

from megarl import plugins
from megarl.config.schema import Config, RewardConfig
from megarl.errors import ConfigError
from megarl.rewards.base import RewardFunction
from megarl.rewards.built_in import BUILT_IN, NEED_LABELS
from megarl.rewards.judging import WeightedReward

ENTRY_POINT_GROUP = "megarl.rewards"


DEFAULT = "exact_match"
"""Of a run that names neither a function nor a reward model."""
ENVIRONMENT = "environment"
"""Name of the environment's part of a reward."""
MODEL = "model"
"""Name of the reward model's part of a reward."""


def configured_rewards(
    config: RewardConfig, label_column: str | None, *, episodes: bool = False
) -> tuple[WeightedReward, ...]:
    """A run's functions, the judge first where there is one; none: others alone decide.

    episodes: whether an environment gives rewards.

    ConfigError as in `load_reward`, and for a reward that needs labels where the data has none.
    """
    name, found = judge_name(config, episodes=episodes), []
    if name is not None:
        function = _labelled("reward.function", name, config.kwargs, label_column)
        found.append(WeightedReward(name, function, config.function_coef))
    for own_name, extra in config.extra_functions.items():
        key = f"reward.extra_functions.{own_name}.function"
        function = _labelled(key, extra.function, extra.kwargs, label_column)
        found.append(WeightedReward(own_name, function, extra.coef))
    return tuple(found)


def judge_name(config: RewardConfig, *, episodes: bool = False) -> str | None:
    """The function that says right from wrong; None where a model or an environment decides."""
    return config.function or (None if config.model.path or episodes else DEFAULT)


def is_judged(config: Config) -> bool:
    """Whether something says right from wrong: a function, or an environment."""
    episodes = config.environment.function is not None
    return episodes or judge_name(config.reward) is not None


def _labelled(
    key: str, name: str, kwargs: dict[str, Any], label_column: str | None
) -> RewardFunction:
    if name in NEED_LABELS and label_column is None:
        raise ConfigError(
            f"{key} is {name}, which compares with labels, and data.label_column is null: name "
            "the column, or take a reward that needs none"
        )
    try:
        return load_reward(name, **dict(kwargs))
    except ConfigError as error:
        raise ConfigError(f"{key}: {error}") from None


def load_reward(spec: str, **kwargs: Any) -> RewardFunction:
    """The reward that `spec` names: a built-in, "path/to/file.py:name", or an entry point.

    Entry points are those that installed packages declare in the group megarl.rewards. A class is
    made with kwargs and its object called; a function gets kwargs at each call. ConfigError that
    says what could not be found, imported or called, and where.
    """
    if spec in BUILT_IN:
        return _bind(BUILT_IN[spec], f"reward {spec}", kwargs)
    target = plugins.load(spec, what="reward", group=ENTRY_POINT_GROUP, known=BUILT_IN)
    return _bind(target, f"reward {spec}", kwargs)


def _bind(target: Any, what: str, kwargs: dict[str, Any]) -> RewardFunction:
    """The callable with its options, checked against how it will be called."""
    if inspect.isclass(target):
        _check_call(target, what, "made with its options", **kwargs)
        try:
            target, kwargs = target(**kwargs), {}
        except Exception as error:  # The class is its author's, and may raise anything.
            raise ConfigError(
                f"{what} cannot be made with {kwargs}: {type(error).__name__}: {error}"
            ) from error
    if not callable(target):
        raise ConfigError(f"{what}: a {type(target).__name__} is no function that can be called")
    _check_call(target, what, "called with (prompts, responses) and its options", [], [], **kwargs)
    return cast(RewardFunction, functools.partial(target, **kwargs) if kwargs else target)


def _check_call(target: Callable[..., Any], what: str, how: str, *args: Any, **kwargs: Any) -> None:
    try:
        signature = inspect.signature(target)
    except ValueError:  # Some compiled functions have none.
        return
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        raise ConfigError(
            f"{what} cannot be {how} {sorted(kwargs)}: {error}; it takes {signature}"
        ) from error

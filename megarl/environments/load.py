"""From what stands in the config to environments, with every mistake named before the run."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from megarl import plugins
from megarl.config.schema import EnvironmentConfig
from megarl.environments.base import Environment
from megarl.environments.guessing import GuessingGame
from megarl.errors import ConfigError

GROUP = "megarl.environments"
BUILT_IN: dict[str, Callable[..., Environment]] = {"guessing_game": GuessingGame}


def load_environment(config: EnvironmentConfig) -> Callable[[], Environment] | None:
    """What makes the config's environments, one for each episode; None where there are none.

    ConfigError that says what could not be found, imported, or made with the given kwargs.
    """
    name = config.function
    if name is None:
        return None
    found: Any = BUILT_IN.get(name)
    if found is None:
        try:
            found = plugins.load(name, what="environment", group=GROUP, known=BUILT_IN)
        except ConfigError as error:
            raise ConfigError(f"environment.function: {error}") from None
    kwargs = dict(config.kwargs)

    def make() -> Environment:
        made: Environment = found(**kwargs)
        return made

    try:
        inspect.signature(found).bind(**kwargs)
        one = make()
    except Exception as error:  # the class is its author's, and may raise anything
        raise ConfigError(
            f"environment.function {name} cannot be made with environment.kwargs {kwargs}: "
            f"{type(error).__name__}: {error}"
        ) from error
    for method in ("reset", "step"):
        if not callable(getattr(one, method, None)):
            raise ConfigError(
                f"environment.function {name}: its objects have no method {method}; see "
                "megarl.environments.base.Environment"
            )
    return make

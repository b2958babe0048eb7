"""From what stands in the config to a reward function, with every mistake named before the run."""

from __future__ import annotations

import difflib
import functools
import importlib.metadata
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType
from typing import Any, cast

from megarl.config.schema import RewardConfig
from megarl.errors import ConfigError
from megarl.rewards.base import RewardFunction
from megarl.rewards.verifiers import BUILT_IN, NEED_LABELS

ENTRY_POINT_GROUP = "megarl.rewards"


DEFAULT = "exact_match"
"""Of a run that names neither a function nor a reward model."""


def configured_reward(
    config: RewardConfig, label_column: str | None
) -> tuple[str, RewardFunction] | None:
    """Name and function of a run's reward; None where a reward model alone decides.

    ConfigError as in `load_reward`, and for a reward that needs labels where the data has none.
    """
    name = config.function or (None if config.model.path else DEFAULT)
    if name in NEED_LABELS and label_column is None:
        raise ConfigError(
            f"reward.function is {name}, which compares with labels, and data.label_column is "
            "null: name the column, or take a reward that needs none"
        )
    return (name, load_reward(name, **dict(config.kwargs))) if name else None


def load_reward(spec: str, **kwargs: Any) -> RewardFunction:
    """The reward that `spec` names: a built-in, "path/to/file.py:name", or an entry point.

    Entry points are those that installed packages declare in the group megarl.rewards. A class is
    made with kwargs and its object called; a function gets kwargs at each call. ConfigError that
    says what could not be found, imported or called, and where.
    """
    if spec in BUILT_IN:
        return _bind(BUILT_IN[spec], f"reward {spec}", kwargs)
    if ":" in spec:
        return _bind(_from_file(spec), f"reward {spec}", kwargs)
    points = {p.name: p for p in importlib.metadata.entry_points(group=ENTRY_POINT_GROUP)}
    if spec not in points:
        known = sorted({*BUILT_IN, *points})
        raise ConfigError(
            f"reward {spec!r} is unknown{_did_you_mean(spec, known)}: one of {', '.join(known)}, "
            "or path/to/file.py:function"
        )
    try:
        target = points[spec].load()
    except Exception as error:  # Importing a plug-in runs its author's code.
        raise ConfigError(
            f"reward {spec}: the entry point {points[spec].value} cannot be loaded: "
            f"{type(error).__name__}: {error}"
        ) from error
    return _bind(target, f"reward {spec}", kwargs)


def _from_file(spec: str) -> Any:
    file, _, name = spec.rpartition(":")
    path = Path(file).expanduser()
    if path.suffix != ".py" or not path.is_file():
        raise ConfigError(
            f"reward {spec}: {path} is not a Python file, seen from {Path.cwd()}: give "
            "path/to/file.py:function"
        )
    module = _import_file(path, spec)
    if not hasattr(module, name):
        public = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
        raise ConfigError(
            f"reward {spec}: {path} has no {name!r}{_did_you_mean(name, public)}; "
            f"it has: {', '.join(public) or 'no functions'}"
        )
    return getattr(module, name)


def _import_file(path: Path, spec: str) -> ModuleType:
    # By its whole path: two files of one name stay two modules.
    module_name = "megarl_reward_" + path.resolve().with_suffix("").as_posix().replace("/", "_")
    module_spec = importlib.util.spec_from_file_location(module_name, path)
    assert module_spec is not None and module_spec.loader is not None
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[module_name] = module  # Dataclasses and pickle look their module up.
    if str(path.resolve().parent) not in sys.path:
        sys.path.append(str(path.resolve().parent))  # for modules that lie beside it
    try:
        module_spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # Importing a user's file runs what stands in it.
        del sys.modules[module_name]
        lines = [f for f in traceback.extract_tb(error.__traceback__) if Path(f.filename) == path]
        line = lines[-1].lineno if lines else getattr(error, "lineno", None)
        raise ConfigError(
            f"reward {spec}: {path}, line {line} fails on import: {type(error).__name__}: {error}"
        ) from error
    return module


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


def _did_you_mean(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""

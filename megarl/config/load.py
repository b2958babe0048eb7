"""From a YAML file and overrides to a `Config`, with the origin of every key."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from megarl.config.docs import settings
from megarl.config.keys import flatten, normalize
from megarl.config.layers import OVERRIDE, Layer, file_layers, override_layers
from megarl.config.schema import Config
from megarl.errors import ConfigError

DEFAULT = "default"
"""Origin of a key that no file and no override sets."""

__all__ = ["DEFAULT", "OVERRIDE", "LoadedConfig", "load_config", "load_with_origins"]


@dataclass(frozen=True, slots=True)
class LoadedConfig:
    """A config and where it comes from."""

    config: Config
    origins: Mapping[str, str]
    """Dotted key -> path of the file, `OVERRIDE` or `DEFAULT`."""


def load_config(path: str | Path | None, overrides: Sequence[str] = ()) -> Config:
    """The settings of a YAML file (None: the defaults) with dotted overrides `a.b=c`.

    The file's `defaults: [path, ...]`, relative to it, come before it; later wins. ConfigError for
    unknown keys, wrong types and cycles, naming key, value and origin.
    """
    return load_with_origins(path, overrides).config


def load_with_origins(path: str | Path | None, overrides: Sequence[str] = ()) -> LoadedConfig:
    """As `load_config`, with the origin of every key."""
    layers = ([] if path is None else file_layers(path)) + override_layers(overrides)
    merged = OmegaConf.structured(Config)
    origins: dict[str, str] = {}
    for layer in map(normalize, layers):
        merged = _merge(merged, layer)
        origins |= dict.fromkeys(flatten(layer.values), layer.origin)
    config = _to_config(merged, origins)
    keys = flatten(dataclasses.asdict(config))
    return LoadedConfig(config, {key: _origin(key, origins) for key in keys})


def _merge(merged: DictConfig, layer: Layer) -> DictConfig:
    try:
        return cast(DictConfig, OmegaConf.merge(merged, layer.values))
    except OmegaConfBaseException as error:
        raise _wrong_type(error, flatten(layer.values), layer.origin) from None


def _to_config(merged: DictConfig, origins: Mapping[str, str]) -> Config:
    try:
        return cast(Config, OmegaConf.to_object(merged))
    except OmegaConfBaseException as error:
        key = str(error.full_key or "")
        cause = str(error.msg or error).splitlines()[0]
        raise ConfigError(f"{key} ({_origin(key, origins)}): {cause}") from None


def _wrong_type(
    error: OmegaConfBaseException, values: Mapping[str, Any], origin: str
) -> ConfigError:
    full_key = str(error.full_key or "")
    key = full_key.partition("[")[0]
    value = next((v for k, v in values.items() if k == key or k.startswith(f"{key}.")), None)
    known = {setting.key: setting for setting in settings()}
    while key and key not in known:
        key = key.rpartition(".")[0]
    expected = known[key].type if key in known else "another type"
    doc = f": {known[key].doc}" if key in known else ""
    return ConfigError(
        f"{full_key} is {value!r} ({origin}): {key} must be {_in_words(expected)}{doc}"
    )


def _in_words(type_name: str) -> str:
    """`int | None` for people who write YAML."""
    words = {"int": "a whole number", "float": "a number", "str": "text", "bool": "true or false"}
    words |= {"None": "null", "dict[str, list[int]]": "a mapping of names to lists of ranks"}
    words |= {"dict[str, Any]": "a mapping", "list[Any]": "a list"}
    words |= {"dict[str, float]": "a mapping of names to numbers", "list[float]": "numbers"}
    words["dict[str, ExtraRewardConfig]"] = "a mapping of names to {function, kwargs, coef}"
    words |= {"list[int]": "a list of whole numbers"}
    return " or ".join(words.get(part, part) for part in type_name.split(" | "))


def _origin(key: str, origins: Mapping[str, str]) -> str:
    """The origin of a key, or of the mapping that it is in."""
    while key:
        if key in origins:
            return origins[key]
        key = key.rpartition(".")[0]
    return DEFAULT

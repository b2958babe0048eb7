"""Where settings come from: a file, the files of its `defaults` chain, and dotted overrides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from megarl.errors import ConfigError

OVERRIDE = "override"
"""Origin of what was given on the command line."""


@dataclass(frozen=True, slots=True)
class Layer:
    """Some settings from one place; later layers win."""

    origin: str
    """Path of the file, or `OVERRIDE`."""
    values: dict[str, Any]
    """Nested, as written."""


def file_layers(path: str | Path) -> list[Layer]:
    """The file's `defaults`, first to last and each with its own, then the file itself.

    ConfigError for a file that is missing or is no mapping, and for a cycle.
    """
    return _file_layers(Path(path), ())


def override_layers(overrides: Sequence[str]) -> list[Layer]:
    """One layer per `a.b=c`; values are YAML. ConfigError for another form."""
    layers = []
    for override in overrides:
        key, equals, _ = override.partition("=")
        if not equals or not all(key.split(".")):
            raise ConfigError(f"override {override!r}: write key=value, such as actor.mesh=t2p2")
        try:
            parsed = OmegaConf.from_dotlist([override])
        except (yaml.YAMLError, OmegaConfBaseException) as error:
            raise ConfigError(f"override {override!r}: {_first_line(error)}") from None
        layers.append(Layer(OVERRIDE, _plain(parsed)))
    return layers


def _file_layers(path: Path, chain: tuple[Path, ...]) -> list[Layer]:
    if path.resolve() in {parent.resolve() for parent in chain}:
        names = " -> ".join(str(parent) for parent in (*chain, path))
        raise ConfigError(f"defaults: {names}: a file cannot be its own default; drop one of them")
    values = _read(path, chain)
    defaults = values.pop("defaults", None) or []
    if not isinstance(defaults, list) or not all(isinstance(name, str) for name in defaults):
        raise ConfigError(
            f"{path}: defaults is {defaults!r}: give a list of paths, relative to this file"
        )
    layers: list[Layer] = []
    for name in defaults:
        layers += _file_layers(path.parent / name, (*chain, path))
    return [*layers, Layer(str(path), values)]


def _read(path: Path, chain: tuple[Path, ...]) -> dict[str, Any]:
    asked = f" (a default of {chain[-1]})" if chain else ""
    if not path.is_file():
        raise ConfigError(f"there is no config file {path}{asked}, seen from {Path.cwd()}")
    try:
        loaded = OmegaConf.load(path)
    except (yaml.YAMLError, OmegaConfBaseException, UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"{path}{asked} is not YAML: {' '.join(str(error).split())}") from None
    if not OmegaConf.is_dict(loaded):
        raise ConfigError(f"{path}{asked} is a list: a config is a mapping of keys to values")
    return _plain(loaded)


def _plain(config: Any) -> dict[str, Any]:
    plain: dict[str, Any] = OmegaConf.to_container(config, resolve=False)  # type: ignore[assignment]
    return plain


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]

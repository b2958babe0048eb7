"""Checks the keys of a layer against the schema, and writes shorthands out."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, get_args, get_origin

from megarl.config.docs import dataclass_of, field_types, settings
from megarl.config.layers import Layer
from megarl.config.schema import Config, MeshConfig
from megarl.config.shorthand import parse_mesh
from megarl.errors import ConfigError


def normalize(layer: Layer) -> Layer:
    """The layer with meshes written out; ConfigError for a key that does not exist."""
    return Layer(layer.origin, _section(layer.values, Config, "", layer.origin))


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings -> dotted key -> value; an empty mapping is a value."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def _section(values: Mapping[str, Any], owner: type[Any], prefix: str, origin: str) -> Any:
    types = field_types(owner)
    found: dict[str, Any] = {}
    for name, value in values.items():
        key = f"{prefix}{name}"
        if name not in types:
            raise ConfigError(_unknown(key, str(name), prefix, list(types), origin))
        part = dataclass_of(types[name])
        if part is MeshConfig and isinstance(value, str) and not _is_interpolation(value):
            value = parse_mesh(value, key, origin)
        elif isinstance(value, Mapping) and part is not None:
            value = _section(value, part, key + ".", origin)
        elif part is not None and not _is_left_out(value, types[name]):
            raise ConfigError(
                f"{key}: {value!r} ({origin}) is one value, and {key} is a group of settings: "
                f"{', '.join(field_types(part))}"
            )
        elif get_origin(types[name]) is dict and not (
            isinstance(value, Mapping) or _is_interpolation(value)
        ):
            raise ConfigError(
                f"{key} is {value!r} ({origin}): {key} must be a mapping, such as {{name: value}}"
            )
        found[name] = _named_sections(value, types[name], key, origin)
    return found


def _named_sections(value: Any, annotation: Any, key: str, origin: str) -> Any:
    """A mapping of names of the user's own to groups of settings, each of them checked."""
    part = dataclass_of(get_args(annotation)[-1]) if get_origin(annotation) is dict else None
    if part is None or not isinstance(value, Mapping):
        return value
    for name, values in value.items():
        if not isinstance(values, Mapping):
            raise ConfigError(
                f"{key}.{name}: {values!r} ({origin}) is one value, and {key}.{name} is a group of "
                f"settings: {', '.join(field_types(part))}"
            )
    return {
        name: _section(values, part, f"{key}.{name}.", origin) for name, values in value.items()
    }


def _is_interpolation(value: Any) -> bool:
    return isinstance(value, str) and "${" in value


def _is_left_out(value: Any, annotation: Any) -> bool:
    optional = type(None) in getattr(annotation, "__args__", ())
    return (value is None and optional) or _is_interpolation(value)


def _unknown(key: str, name: str, prefix: str, siblings: list[str], origin: str) -> str:
    """The message for an unknown key, with the likeliest one that exists."""
    known = [setting.key for setting in settings()]
    near = [prefix + match for match in difflib.get_close_matches(name, siblings, n=1)]
    same_name = [other for other in known if other.rpartition(".")[2] == name]
    in_section = [other for other in same_name if other.startswith(prefix)]
    close = difflib.get_close_matches(key, known, n=1)
    guesses = [*near, *in_section, *same_name, *close]
    hint = f" (did you mean {guesses[0]}?)" if guesses else ""
    place = f"; {prefix.rstrip('.') or 'the config'} has: {', '.join(siblings)}"
    return f"{key} ({origin}) is no setting{hint}{place}"

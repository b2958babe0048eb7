"""Writes the resolved settings of a run, with the origin of each as a comment."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from megarl.config.load import DEFAULT
from megarl.config.schema import Config

COMMAND = "# megarl "


def save_resolved(
    config: Config, origins: Mapping[str, str], path: str | Path, command: str
) -> None:
    """Write YAML that loads to the same config, one key a line; nothing half-written stays.

    command: what runs with these settings, said in the first line.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(path.name + ".partial")
    text = "\n".join(_lines(dataclasses.asdict(config), origins, "", 0)) + "\n"
    with aside.open("w", encoding="utf-8") as file:
        file.write(f"{COMMAND}{command}\n{text}")
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)


def saved_command(text: str) -> str:
    """The command of settings that `save_resolved` wrote; "" of others."""
    first = text.partition("\n")[0]
    return first.removeprefix(COMMAND) if first.startswith(COMMAND) else ""


def _lines(
    values: Mapping[str, Any], origins: Mapping[str, str], prefix: str, depth: int
) -> Iterator[str]:
    indent = "  " * depth
    for name, value in values.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping) and value:
            yield f"{indent}{_scalar(name)}:"
            yield from _lines(value, origins, key + ".", depth + 1)
        else:
            yield f"{indent}{_scalar(name)}: {_scalar(value)}  # {origins.get(key, DEFAULT)}"


def _scalar(value: Any) -> str:
    """The value on one line."""
    text: str = yaml.safe_dump(value, default_flow_style=True, width=10**9, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...").strip()

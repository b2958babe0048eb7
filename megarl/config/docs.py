"""The documentation of every setting, read from the strings under the schema's fields."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import sys
import textwrap
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from types import UnionType
from typing import Any, cast

from megarl.config import schema


@dataclass(frozen=True, slots=True)
class Setting:
    """One key of the config."""

    key: str
    """Dotted, as in an override."""
    type: str
    """As it is written in the schema."""
    default: Any
    doc: str
    """What it means, with its unit."""


def settings() -> list[Setting]:
    """Every key that has a value of its own, in the order of the schema."""
    return list(_settings(schema.Config, schema.Config(), ""))


def sections() -> dict[str, str]:
    """Dotted key of every group of settings -> what the group is."""
    return dict(_sections(schema.Config, ""))


def dataclass_of(annotation: Any) -> type[Any] | None:
    """The dataclass that a field holds, also where it may be None; None for a plain value."""
    if isinstance(annotation, UnionType) or typing.get_origin(annotation) is typing.Union:
        found = [dataclass_of(part) for part in typing.get_args(annotation)]
        return next((part for part in found if part is not None), None)
    if isinstance(annotation, type) and dataclasses.is_dataclass(annotation):
        return cast(type[Any], annotation)
    return None


def field_types(owner: type[Any]) -> dict[str, Any]:
    """Field name -> resolved annotation."""
    hints = typing.get_type_hints(owner)
    return {field.name: hints[field.name] for field in dataclasses.fields(owner)}


def help_text(width: int = 96) -> str:
    """All settings by section: key, type, default, meaning."""
    parts: list[str] = []
    section = None
    titles = sections()
    for setting in settings():
        name, _, _ = setting.key.rpartition(".")
        if name != section:
            section = name
            title = titles.get(name, "")
            parts.append(f"\n{name}: {title}" if name else "")
        parts.append(f"  {setting.key} ({setting.type}, default {_shown(setting.default)})")
        parts.append(textwrap.indent(textwrap.fill(setting.doc, width - 6), " " * 6))
    return "\n".join(parts).strip("\n")


def _shown(value: Any) -> str:
    """As it would be written in an override."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return repr(value) if isinstance(value, str) else str(value)


def _settings(owner: type[Any], values: Any, prefix: str) -> Iterator[Setting]:
    docs, types = _field_docs(owner.__module__)[owner.__name__], field_types(owner)
    for field in dataclasses.fields(owner):
        key = prefix + field.name
        default = getattr(values, field.name)
        part = dataclass_of(types[field.name])
        written, doc = docs.get(field.name, (str(field.type), ""))
        if part is None or default is None:
            yield Setting(key, written, default, doc)
        if part is not None:
            yield from _settings(part, part() if default is None else default, key + ".")


def _sections(owner: type[Any], prefix: str) -> Iterator[tuple[str, str]]:
    docs, types = _field_docs(owner.__module__)[owner.__name__], field_types(owner)
    for field in dataclasses.fields(owner):
        part = dataclass_of(types[field.name])
        if part is not None:
            yield prefix + field.name, docs.get(field.name, ("", ""))[1]
            yield from _sections(part, prefix + field.name + ".")


@cache
def _field_docs(module: str) -> dict[str, dict[str, tuple[str, str]]]:
    """Of a module of the schema: class -> field -> (annotation, string under it)."""
    found: dict[str, dict[str, tuple[str, str]]] = {}
    for node in ast.parse(inspect.getsource(sys.modules[module])).body:
        if not isinstance(node, ast.ClassDef):
            continue
        fields = found[node.name] = {}
        for line, below in zip(node.body, [*node.body[1:], None], strict=True):
            if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name):
                fields[line.target.id] = (ast.unparse(line.annotation), _string(below))
    return found


def _string(node: ast.stmt | None) -> str:
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        if isinstance(node.value.value, str):
            return " ".join(node.value.value.split())
    return ""

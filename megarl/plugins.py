"""What users bring themselves: a name in path/to/file.py:name, or the name of an entry point."""

from __future__ import annotations

import difflib
import importlib.metadata
import importlib.util
import sys
import traceback
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

from megarl.errors import ConfigError


def load(spec: str, *, what: str, group: str, known: Iterable[str] = ()) -> Any:
    """The object that `spec` names: path/to/file.py:name, or an entry point of `group`.

    what: what `spec` is, for messages ("reward"); known: names that are built in, which a wrong one
    is compared with. A file runs once, until it changes. ConfigError that says what could not be
    found or imported, and where.
    """
    if ":" in spec:
        return _from_file(spec, what)
    if spec.endswith(".py"):
        raise ConfigError(f"{what} {spec}: say which function of it, as {spec}:function")
    points = {p.name: p for p in importlib.metadata.entry_points(group=group)}
    if spec not in points:
        names = sorted({*known, *points})
        raise ConfigError(
            f"{what} {spec!r} is unknown{did_you_mean(spec, names)}: one of {', '.join(names)}, "
            "or path/to/file.py:function"
        )
    try:
        return points[spec].load()
    except Exception as error:  # Importing a plug-in runs its author's code.
        raise ConfigError(
            f"{what} {spec}: the entry point {points[spec].value} cannot be loaded: "
            f"{type(error).__name__}: {error}"
        ) from error


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A hint at the nearest of the known names; "" where none is near."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def _from_file(spec: str, what: str) -> Any:
    file, _, name = spec.rpartition(":")
    path = Path(file).expanduser()
    if path.suffix != ".py" or not path.is_file():
        raise ConfigError(
            f"{what} {spec}: {path} is not a Python file, seen from {Path.cwd()}: give "
            "path/to/file.py:function"
        )
    module = _import_file(path, f"{what} {spec}")
    if not hasattr(module, name):
        public = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
        raise ConfigError(
            f"{what} {spec}: {path} has no {name!r}{did_you_mean(name, public)}; "
            f"it has: {', '.join(public) or 'no functions'}"
        )
    return getattr(module, name)


def _import_file(path: Path, what: str) -> ModuleType:
    # By its whole path: two files of one name stay two modules.
    name = "megarl_plugin_" + path.resolve().with_suffix("").as_posix().replace("/", "_")
    stat = path.stat()
    state = (stat.st_mtime_ns, stat.st_size)
    if getattr(sys.modules.get(name), "__megarl_state__", None) == state:
        return sys.modules[name]
    module_spec = importlib.util.spec_from_file_location(name, path)
    assert module_spec is not None and module_spec.loader is not None
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[name] = module  # Dataclasses and pickle look their module up.
    if str(path.resolve().parent) not in sys.path:
        sys.path.append(str(path.resolve().parent))  # for modules that lie beside it
    try:
        module_spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # Importing a user's file runs what stands in it.
        del sys.modules[name]
        lines = [f for f in traceback.extract_tb(error.__traceback__) if Path(f.filename) == path]
        line = lines[-1].lineno if lines else getattr(error, "lineno", None)
        raise ConfigError(
            f"{what}: {path}, line {line} fails on import: {type(error).__name__}: {error}"
        ) from error
    module.__megarl_state__ = state  # type: ignore[attr-defined]
    return module

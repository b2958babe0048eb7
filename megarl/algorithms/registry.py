"""Functions by name: the built-in ones, and what users register, keep in a file or install."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Generic, Protocol, TypeVar, cast

from megarl import plugins
from megarl.errors import ConfigError


class Entry(Protocol):
    """What a registry holds: a record of a function and of what it needs."""

    @property
    def name(self) -> str:
        """What configs call it."""

    @property
    def compute(self) -> Callable[..., Any]:
        """The function."""


E = TypeVar("E", bound=Entry)


class Registry(Generic[E]):
    """The records of one setting, by name.

    key: the setting, for messages; group: the entry points that belong to it; kind: the record's
    class, called with a name and a function that comes without a record.
    """

    def __init__(
        self,
        key: str,
        group: str,
        kind: Callable[[str, Callable[..., Any]], E],
        takes: tuple[str, ...],
    ) -> None:
        """takes: what the function is called with, for messages."""
        self._key, self._group, self._kind, self._takes = key, group, kind, takes
        self._entries: dict[str, E] = {}
        self._loaded: dict[str, E] = {}

    def add(self, entry: E) -> None:
        """Make a record known by its name.

        The same function of the same module may come again, as in a notebook's cell that is run
        twice; ConfigError for another one.
        """
        old = self._entries.get(entry.name)
        if old is not None and _identity(old.compute) != _identity(entry.compute):
            raise ConfigError(f"{self._key} {entry.name!r} is registered already: choose another")
        self._entries[entry.name] = entry

    def get(self, spec: str) -> E:
        """The record of a registered name, of path/to/file.py:function, or of an entry point.

        What a file or an entry point gives is a function, registered or not, or a record.
        ConfigError that lists the known names, or says what could not be loaded.
        """
        if spec in self._entries:
            return self._entries[spec]
        if spec not in self._loaded:
            target = plugins.load(spec, what=self._key, group=self._group, known=self._entries)
            self._loaded[spec] = self._record(spec, target)
        return self._loaded[spec]

    def names(self) -> tuple[str, ...]:
        """The registered names, in order."""
        return tuple(sorted(self._entries))

    def _record(self, spec: str, target: Any) -> E:
        if isinstance(self._kind, type) and isinstance(target, self._kind):
            return cast(E, target)
        for entry in self._entries.values():
            if entry.compute is target:
                return entry
        if not callable(target):
            raise ConfigError(
                f"{self._key} {spec}: a {type(target).__name__} is no function that can be called"
            )
        try:
            inspect.signature(target).bind(*self._takes)
        except TypeError as error:
            raise ConfigError(
                f"{self._key} {spec}: it is called with ({', '.join(self._takes)}): {error}"
            ) from None
        return self._kind(spec, target)


def _identity(function: Callable[..., Any]) -> tuple[str | None, str | None]:
    return getattr(function, "__module__", None), getattr(function, "__qualname__", None)

"""Which servers there are: named in the config, listed in a file, or started by the run."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from megarl.errors import ConfigError
from megarl.rollout.servers.address import ServerAddress, parse_addresses


class ServerSource(Protocol):
    """Who knows the servers."""

    def wait(self) -> None:
        """Until those that the run starts itself answer."""
        ...

    def known(self) -> list[ServerAddress]:
        """Those that there are now, well or not; each keeps its name."""
        ...

    def close(self) -> None:
        """The run is over."""
        ...


class NamedServers:
    """Always the same."""

    def __init__(self, urls: list[str]) -> None:
        self._addresses = parse_addresses(urls, "rollout.servers")

    def wait(self) -> None:
        """Nothing is started here."""

    def known(self) -> list[ServerAddress]:
        """See ServerSource."""
        return list(self._addresses)

    def close(self) -> None:
        """They are others'."""


class ListedServers:
    """Those in a file, an address per line; empty lines and what follows a # are left out."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._numbers: dict[str, int] = {}

    def wait(self) -> None:
        """Nothing is started here."""

    def known(self) -> list[ServerAddress]:
        """See ServerSource; ConfigError for a file that cannot be read, or a line that cannot."""
        try:
            text = self._path.read_text(encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"rollout.servers_file {self._path}: {error.strerror}") from None
        lines = [line.partition("#")[0].strip() for line in text.splitlines()]
        urls = [line for line in lines if line]
        found = parse_addresses(urls, f"rollout.servers_file {self._path}") if urls else []
        return [
            ServerAddress(f"server {self._number(one.url)}", one.url, one.api_key) for one in found
        ]

    def close(self) -> None:
        """They are others'."""

    def _number(self, url: str) -> int:
        return self._numbers.setdefault(url, len(self._numbers))

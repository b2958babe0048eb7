"""Where a rollout server is, and what it must be told to let us in."""

from __future__ import annotations

import urllib.parse
from dataclasses import dataclass, field

from megarl.errors import ConfigError
from megarl.runtime.environment import SERVER_KEY, server_api_key

LOOPBACK = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True, slots=True)
class ServerAddress:
    """One server. Messages call it by `name`: its address is nobody's business who reads a log."""

    name: str
    """server 0, server 1, ..."""
    url: str = field(repr=False)
    """http://host:port, without a path."""
    api_key: str | None = field(default=None, repr=False)

    @property
    def headers(self) -> dict[str, str]:
        """What each request carries."""
        return {} if self.api_key is None else {"Authorization": f"Bearer {self.api_key}"}


def parse_addresses(urls: list[str], key: str = "rollout.servers") -> list[ServerAddress]:
    """The servers at http(s)://host:port, in order; with or without the /v1 of OpenAI's clients.

    The API key comes from MEGARL_SERVER_API_KEY, and is needed off loopback. ConfigError, naming
    the setting `key` and the address's position, for none, one that cannot be read, and twice the
    same.
    """
    if not urls:
        raise ConfigError(f"{key} is empty: name a server at least, as http://host:port")
    api_key = server_api_key()
    found: list[ServerAddress] = []
    for index, url in enumerate(urls):
        place = f"{key}[{index}]"
        base = _base(url, place)
        if base in {one.url for one in found}:
            raise ConfigError(f"{place} is the same server as another: name each once")
        if urllib.parse.urlsplit(base).hostname not in LOOPBACK and api_key is None:
            raise ConfigError(
                f"{place} is not on this machine, and {SERVER_KEY} is not set: start the server "
                "with --api-key, and put the key into that variable"
            )
        found.append(ServerAddress(f"server {index}", base, api_key))
    return found


def _base(url: str, place: str) -> str:
    parts = urllib.parse.urlsplit(url if isinstance(url, str) else "")
    try:
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port is not None
    except ValueError:  # a port that is no number
        usable = False
    rest = parts.path.rstrip("/").removesuffix("/v1") or parts.query or parts.fragment
    if not usable or rest or parts.username or parts.password:
        raise ConfigError(
            f"{place} cannot be read as an address: write http://host:port, and nothing behind it"
        )
    return f"{parts.scheme}://{parts.netloc}"

"""Which servers answer."""

from __future__ import annotations

import http.client
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from megarl.rollout.servers.address import ServerAddress

TIMEOUT_S = 5.0
# Servers are peers: a proxy of the environment is for the world outside.
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def answers(address: ServerAddress, timeout_s: float = TIMEOUT_S) -> bool:
    """Whether a server says that it is well."""
    request = urllib.request.Request(f"{address.url}/health", headers=address.headers)
    try:
        with _OPENER.open(request, timeout=timeout_s) as response:
            return bool(response.status == 200)
    except (OSError, http.client.HTTPException):
        return False


def those_that_answer(addresses: Sequence[ServerAddress]) -> list[ServerAddress]:
    """The servers that are well, in order; all are asked at the same time."""
    if not addresses:
        return []
    with ThreadPoolExecutor(max_workers=min(len(addresses), 32)) as pool:
        well = list(pool.map(answers, addresses))
    return [address for address, is_well in zip(addresses, well, strict=True) if is_well]

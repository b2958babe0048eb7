"""A door before the routes that change a vLLM server's weights: its own API key leaves them open.

Given to vLLM as `--middleware megarl.transfer.guard.WeightRoutesGuard`. With a key (VLLM_API_KEY or
MEGARL_SERVER_API_KEY) only who has it gets through; without one, only this machine.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from megarl.rollout.servers.address import LOOPBACK
from megarl.runtime.environment import server_api_key

OPEN = ("/health", "/ping", "/version", "/load", "/metrics")
"""Routes that anybody may ask: they change nothing, and say nothing of the model."""

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class WeightRoutesGuard:
    """ASGI middleware."""

    def __init__(self, app: App) -> None:
        self._app, self._key = app, server_api_key()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on what is allowed; 401 for the rest."""
        if scope["type"] == "http" and not self._allows(scope):
            body = json.dumps({"error": {"message": "this route wants the server's API key"}})
            headers = [(b"content-type", b"application/json")]
            await send({"type": "http.response.start", "status": 401, "headers": headers})
            await send({"type": "http.response.body", "body": body.encode()})
            return
        await self._app(scope, receive, send)

    def _allows(self, scope: Scope) -> bool:
        if scope["path"] in OPEN:
            return True
        if self._key is None:
            client = scope.get("client")
            return client is not None and client[0] in LOOPBACK
        given = dict(scope["headers"]).get(b"authorization", b"")
        return secrets.compare_digest(given, f"Bearer {self._key}".encode())

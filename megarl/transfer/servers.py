"""vLLM's weight-update routes, over HTTP or on a `vllm.LLM` in the trainer's process.

Every method returns when the server has done it, and raises PeerError, with the server's name, the
step and the cause, when it has not.
"""

from __future__ import annotations

import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, Protocol

from megarl.errors import ConfigError, PeerError, RunError
from megarl.layout import ReplicaLayout
from megarl.rollout.servers.address import ServerAddress, parse_addresses

PauseMode = Literal["abort", "wait", "keep"]
"""What becomes of requests that run: they end early, the update waits for them, or they go on with
the new weights."""


class Server(Protocol):
    """One vLLM engine that takes weights."""

    name: str
    replica: ReplicaLayout

    def check(self, timeout_s: float) -> None:
        """Raises ConfigError where the server cannot take part, before anything is started."""
        ...

    def initialize(self, init_info: Mapping[str, Any], timeout_s: float) -> None:
        """Have the workers join the trainer's group; returns when they have."""
        ...

    def pause(self, timeout_s: float) -> None:
        """Stop generating; requests that come are kept until `resume`."""
        ...

    def update(self, update_info: Mapping[str, Any], timeout_s: float) -> None:
        """Have the workers receive; returns when all of them have verified what came."""
        ...

    def finish(self, version: str, timeout_s: float) -> None:
        """Close the update under the name of a version."""
        ...

    def forget(self, timeout_s: float) -> None:
        """Forget the keys and values of earlier weights."""
        ...

    def resume(self, timeout_s: float) -> None:
        """Generate again."""
        ...

    def release(self, timeout_s: float) -> None:
        """Have the workers leave the trainer's group."""
        ...


def http_servers(
    urls: Sequence[str | ServerAddress],
    replica: ReplicaLayout | None = None,
    *,
    pause_mode: PauseMode = "wait",
) -> list[HttpServer]:
    """The servers at http://host:port, which messages call server 0, server 1, ...

    Their API key comes from MEGARL_SERVER_API_KEY; an address that has one may be given as well.
    ConfigError for addresses that cannot be used.
    """
    texts = [one for one in urls if isinstance(one, str)]
    parsed = iter(parse_addresses(texts, "servers") if texts else [])
    found = [next(parsed) if isinstance(one, str) else one for one in urls]
    return [HttpServer(address, replica, pause_mode=pause_mode) for address in found]


class HttpServer:
    """A server that was started with VLLM_SERVER_DEV_MODE=1 and the backend `megarl`."""

    def __init__(
        self,
        address: ServerAddress,
        replica: ReplicaLayout | None = None,
        *,
        pause_mode: PauseMode = "wait",
    ) -> None:
        """replica: how the server was told to split the model; without it, not at all."""
        self.name, self.replica = address.name, replica or ReplicaLayout()
        self._address, self._pause_mode = address, pause_mode
        # Servers are peers of the trainer: a proxy of the environment is for the world outside.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def check(self, timeout_s: float) -> None:
        """See Server."""
        found = self._call("GET", "get_world_size", None, timeout_s)["world_size"]
        if found != self.replica.size:
            raise ConfigError(
                f"{self.name} has {found} workers; the trainer was told of {self.replica.size} "
                f"({self.replica.describe()}): give HttpServer the server's ReplicaLayout"
            )

    def initialize(self, init_info: Mapping[str, Any], timeout_s: float) -> None:
        """See Server."""
        body = {"init_info": dict(init_info)}
        self._call("POST", "init_weight_transfer_engine", body, timeout_s)

    def pause(self, timeout_s: float) -> None:
        """See Server."""
        self._call("POST", f"pause?mode={self._pause_mode}", {}, timeout_s)

    def update(self, update_info: Mapping[str, Any], timeout_s: float) -> None:
        """See Server."""
        self._call("POST", "start_weight_update", {}, timeout_s)
        self._call("POST", "update_weights", {"update_info": dict(update_info)}, timeout_s)

    def finish(self, version: str, timeout_s: float) -> None:
        """See Server."""
        self._call("POST", "finish_weight_update", {"weight_version": version}, timeout_s)

    def forget(self, timeout_s: float) -> None:
        """See Server."""
        # Requests that go on with the new weights compute their keys and values anew.
        route = "reset_prefix_cache"
        route += "?reset_running_requests=true" if self._pause_mode == "keep" else ""
        if not self._call("POST", route, {}, timeout_s)["success"]:
            raise PeerError(f"{self.name} did not reset its prefix cache")

    def resume(self, timeout_s: float) -> None:
        """See Server."""
        self._call("POST", "resume", {}, timeout_s)

    def release(self, timeout_s: float) -> None:
        """See Server."""
        self._call("POST", "shutdown_weight_transfer_engine", {}, timeout_s)

    def _call(self, method: str, route: str, body: Any, timeout_s: float) -> Any:
        request = urllib.request.Request(
            f"{self._address.url}/{route}",
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Content-Type": "application/json", **self._address.headers},
        )
        try:
            with self._opener.open(request, timeout=timeout_s) as response:
                return json.loads(response.read())
        except urllib.error.HTTPError as error:
            said = error.read().decode(errors="replace")
            raise PeerError(f"{self.name}: /{route}: {error.code}: {_reason(said)}") from error
        except (OSError, http.client.HTTPException, ValueError) as error:
            # Refused, reset, timed out, or not the answer of a vLLM server.
            raise PeerError(f"{self.name}: /{route}: no answer: {error}") from error


class OfflineServer:
    """A `vllm.LLM` of trainer rank 0, made with `weight_transfer_config={"backend": "megarl"}`.

    A failed update leaves it paused: `generate` would wait, until an update has succeeded.
    """

    def __init__(self, llm: Any, replica: ReplicaLayout | None = None) -> None:
        """replica: how the LLM was told to split the model; without it, not at all."""
        self.name, self.replica, self._llm = "vllm.LLM", replica or ReplicaLayout(), llm

    def check(self, timeout_s: float) -> None:
        """See Server."""
        found = self._llm.llm_engine.vllm_config.parallel_config.world_size
        if found != self.replica.size:
            raise ConfigError(
                f"{self.name} has {found} workers; the trainer was told of {self.replica.size} "
                f"({self.replica.describe()}): give OfflineServer the LLM's ReplicaLayout"
            )

    def initialize(self, init_info: Mapping[str, Any], timeout_s: float) -> None:
        """See Server."""
        with named(self.name, "init_weight_transfer_engine"):
            self._llm.init_weight_transfer_engine({"init_info": dict(init_info)})

    def pause(self, timeout_s: float) -> None:
        """See Server."""
        with named(self.name, "sleep"):
            self._llm.sleep(level=0)

    def update(self, update_info: Mapping[str, Any], timeout_s: float) -> None:
        """See Server."""
        with named(self.name, "start_weight_update"):
            self._llm.start_weight_update()
        with named(self.name, "update_weights"):
            self._llm.update_weights({"update_info": dict(update_info)})

    def finish(self, version: str, timeout_s: float) -> None:
        """See Server."""
        with named(self.name, "finish_weight_update"):
            self._llm.finish_weight_update(version)

    def forget(self, timeout_s: float) -> None:
        """See Server."""
        with named(self.name, "reset_prefix_cache"):
            if not self._llm.reset_prefix_cache():
                raise RunError("the prefix cache was not reset")

    def resume(self, timeout_s: float) -> None:
        """See Server."""
        with named(self.name, "resume"):
            self._llm.wake_up(tags=["scheduling"])

    def release(self, timeout_s: float) -> None:
        """See Server."""
        with named(self.name, "shutdown_weight_transfer_engine"):
            self._llm.shutdown_weight_transfer_engine()


@contextmanager
def named(server: str, step: str) -> Iterator[None]:
    """Whatever vLLM raises inside becomes a PeerError with the server's name and the step."""
    try:
        yield
    except Exception as error:
        answer = getattr(error, "response", None)  # of vLLM's HTTP client
        said = f"{type(error).__name__}: {error}" if answer is None else _reason(answer.text)
        raise PeerError(f"{server}: {step}: {said}") from error


def _reason(said: str) -> str:
    """The message in vLLM's answer, or the answer itself."""
    try:
        return str(json.loads(said)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return said[:500]

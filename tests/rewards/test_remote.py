"""Rewards from a service, against a real HTTP server that is slow, broken, or rude."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from megarl.errors import ConfigError, RunError
from megarl.rewards.remote import HttpReward
from megarl.types import Prompt


@dataclass
class Service:
    """What the server was asked, and how it behaves."""

    url: str = ""
    requests: list[list[dict[str, Any]]] = field(default_factory=list)
    failures: list[Any] = field(default_factory=list)
    """Of the next requests: a status, "hang up", "late", or an answer's text."""
    seconds: float = 0.0
    at_once: int = 0
    most_at_once: int = 0


@pytest.fixture
def service() -> Iterator[Service]:
    state, lock = Service(), threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            samples = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["samples"]
            with lock:
                state.requests.append(samples)
                state.at_once += 1
                state.most_at_once = max(state.most_at_once, state.at_once)
                failure = state.failures.pop(0) if state.failures else None
            time.sleep(2.0 if failure == "late" else state.seconds)
            with lock:
                state.at_once -= 1
            if failure == "hang up":
                self.connection.close()
                return
            scores = [float(len(sample["response"])) for sample in samples]
            text = failure if isinstance(failure, str) else json.dumps({"scores": scores})
            self.send_response(failure if isinstance(failure, int) else 200)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{server.server_port}/score"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield state
    server.shutdown()
    thread.join()
    server.server_close()


def ask(service: Service, count: int, **options: Any) -> list[float]:
    prompts = [Prompt(i, (1,), f"p{i}", f"l{i}", "s", {"k": i}) for i in range(count)]
    reward = HttpReward(service.url, **{"pause_s": 0.01, **options})
    return reward(prompts, ["x" * i for i in range(count)])


def test_batches_come_back_in_order_and_few_are_in_flight(service: Service) -> None:
    service.seconds = 0.05
    assert ask(service, 20, batch_size=3, max_in_flight=2) == [float(i) for i in range(20)]
    assert sorted(map(len, service.requests)) == [2, 3, 3, 3, 3, 3, 3]
    assert service.most_at_once == 2
    sample = next(s for batch in service.requests for s in batch if s["prompt"] == "p7")
    assert sample == {
        "prompt": "p7",
        "response": "x" * 7,
        "label": "l7",
        "source": "s",
        "extra": {"k": 7},
    }


def test_what_passes_is_tried_again(service: Service) -> None:
    service.failures = [503, "hang up", 429, "late"]
    assert ask(service, 3, timeout_s=1.0) == [0.0, 1.0, 2.0]
    assert len(service.requests) == 5


@pytest.mark.parametrize(
    ("failures", "words"),
    [
        ([500] * 3, r"gave no answer in 3 tries, the last: status 500"),
        (["hang up"] * 3, r"gave no answer in 3 tries, the last: RemoteProtocolError"),
        ([404], r"status 404"),
        (["{}"], r"is not .* with 2 numbers: '{}'"),
        (['{"scores": [1]}'], r"with 2 numbers"),
        (["nonsense"], r"'nonsense'"),
    ],
)
def test_what_does_not_pass_is_told(service: Service, failures: list[Any], words: str) -> None:
    service.failures = failures
    with pytest.raises(RunError, match=words):
        ask(service, 2, retries=2)


def test_settings_that_cannot_be() -> None:
    with pytest.raises(ConfigError, match="url is 'host:80'"):
        HttpReward("host:80")
    with pytest.raises(ConfigError, match="max_in_flight is 0"):
        HttpReward("http://host:80", max_in_flight=0)

"""Which servers a run has, how it starts them, and the door before their weights."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from vllm_server import is_alive

from megarl.errors import ConfigError, RunError
from megarl.layout import ReplicaLayout
from megarl.rollout.servers import launch
from megarl.rollout.servers.health import those_that_answer
from megarl.rollout.servers.launch import LaunchedServers, LaunchOptions, server_arguments
from megarl.rollout.servers.pool import ListedServers, NamedServers
from megarl.rollout.vllm_engine import VllmSettings
from megarl.transfer.guard import WeightRoutesGuard

HERE = Path(__file__).parent
SETTINGS = VllmSettings("model", "run", ReplicaLayout(2), "bfloat16", 96, 1 << 20)
STAND_IN = """
import http.server, os, subprocess, sys, time
words = sys.argv
if "fails" in os.environ.get("STAND_IN", ""):
    print("no such model", flush=True)
    sys.exit(3)
port = int(words[words.index("--port") + 1])
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print("child", child.pid, flush=True)
class Answers(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        key = self.headers.get("Authorization")
        right = key == "Bearer " + os.environ["VLLM_API_KEY"]
        self.send_response(200 if right else 401)
        self.end_headers()
http.server.HTTPServer(("127.0.0.1", port), Answers).serve_forever()
"""
"""A program in vLLM's place, with a child of its own, that lets in who has the key."""


def test_arguments_are_vllms() -> None:
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    told = server_arguments(
        replace(SETTINGS, engine_args={"block_size": 32, "async_scheduling": False})
    )
    parsed = make_arg_parser(FlexibleArgumentParser()).parse_args(told)
    assert parsed.model == "model" and parsed.tensor_parallel_size == 2
    assert parsed.enable_scale_out and parsed.load_format == "dummy"
    assert parsed.logprobs_mode == "processed_logprobs" and parsed.block_size == 32
    assert parsed.middleware == ["megarl.transfer.guard.WeightRoutesGuard"]
    assert parsed.async_scheduling is False and parsed.max_model_len == 96
    assert not parsed.enable_log_requests


def test_a_file_lists_them(tmp_path: Path) -> None:
    """Each keeps its name while others come and go."""
    path = tmp_path / "servers"
    path.write_text("# ours\nhttp://127.0.0.1:1\n\nhttp://127.0.0.1:2/v1  # the second\n")
    source = ListedServers(path)
    assert [(one.name, one.url) for one in source.known()] == [
        ("server 0", "http://127.0.0.1:1"),
        ("server 1", "http://127.0.0.1:2"),
    ]
    path.write_text("http://127.0.0.1:3\nhttp://127.0.0.1:2\n")
    assert [one.name for one in source.known()] == ["server 2", "server 1"]
    path.write_text("")
    assert source.known() == []
    path.write_text("127.0.0.1:3\n")
    with pytest.raises(ConfigError, match=r"servers_file .*\[0\] cannot be read as an address"):
        source.known()
    path.unlink()
    with pytest.raises(ConfigError, match="No such file"):
        source.known()


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keepers start this in vLLM's place."""
    package = tmp_path / "vllm" / "entrypoints" / "openai"
    package.mkdir(parents=True)
    for folder in (package, package.parent, package.parent.parent):
        (folder / "__init__.py").write_text("")
    (package / "api_server.py").write_text(STAND_IN)
    paths = [str(tmp_path), str(Path(launch.__file__).parents[3])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    monkeypatch.delenv("MEGARL_SERVER_API_KEY", raising=False)
    return tmp_path


def options(folder: Path, replicas: int = 2) -> LaunchOptions:
    return LaunchOptions(replicas, folder / "logs", ready_timeout_s=30)


def children(folder: Path) -> list[int]:
    """Of the stand-ins, by their logs."""
    logs = sorted((folder / "logs").glob("*.log"))
    return [int(log.read_text().split()[1]) for log in logs]


def wait_until(done: Any, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_they_start_and_end_with_all_their_processes(stand_in: Path) -> None:
    servers = LaunchedServers(SETTINGS, options(stand_in))
    servers.wait()
    found = servers.known()
    assert [one.name for one in found] == ["server 0", "server 1"]
    assert those_that_answer(found) == found
    assert all(one.api_key not in repr(one) and one.url not in repr(one) for one in found)
    below = children(stand_in)
    assert all(map(is_alive, below))
    servers.close()
    assert not any(map(is_alive, below)) and those_that_answer(found) == []


def test_one_that_died_is_started_again(stand_in: Path) -> None:
    servers = LaunchedServers(SETTINGS, options(stand_in))
    servers.wait()
    child = children(stand_in)[0]
    parent = int(Path(f"/proc/{child}/stat").read_text().rsplit(")", 1)[1].split()[1])
    os.kill(parent, signal.SIGKILL)
    wait_until(lambda: not is_alive(child))  # its keeper saw to it
    wait_until(lambda: len(those_that_answer(servers.known())) == 2)
    assert [one.name for one in servers.known()] == ["server 0", "server 1"]
    servers.close()


def test_they_end_when_the_run_is_killed(stand_in: Path) -> None:
    program = (
        "import sys, time; from pathlib import Path; sys.path[:0] = sys.argv[1].split(':');"
        "import test_servers_of_a_run as t;"
        "s = t.LaunchedServers(t.SETTINGS, t.options(Path(sys.argv[2]))); s.wait();"
        "print('ready', flush=True); time.sleep(600)"
    )
    words = [sys.executable, "-c", program, f"{HERE}:{HERE.parent / 'distributed'}", str(stand_in)]
    run = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    assert run.stdout is not None and run.stdout.readline() == "ready\n"
    below = children(stand_in)
    run.kill()
    run.communicate()
    wait_until(lambda: not any(map(is_alive, below)))


def test_one_that_does_not_start_is_named(stand_in: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAND_IN", "fails")
    servers = LaunchedServers(SETTINGS, options(stand_in, 1))
    with pytest.raises(RunError, match="(?s)server 0 ended while it started.*no such model"):
        servers.wait()
    servers.close()


def test_named_servers() -> None:
    source = NamedServers(["http://127.0.0.1:1/v1"])
    assert [one.url for one in source.known()] == ["http://127.0.0.1:1"]
    assert those_that_answer(source.known()) == []


@pytest.mark.parametrize(
    ("key", "given", "client", "path", "passes"),
    [
        (None, None, "127.0.0.1", "/update_weights", True),
        (None, None, "10.0.0.7", "/update_weights", False),
        (None, None, "10.0.0.7", "/health", True),
        ("secret", "secret", "10.0.0.7", "/pause", True),
        ("secret", "secre", "127.0.0.1", "/pause", False),
        ("secret", None, "127.0.0.1", "/start_weight_update", False),
        ("secret", None, "127.0.0.1", "/inference/v1/generate", False),
        ("secret", None, "127.0.0.1", "/health", True),
    ],
)
def test_the_guard(
    key: str | None,
    given: str | None,
    client: str,
    path: str,
    passes: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    monkeypatch.delenv("MEGARL_SERVER_API_KEY", raising=False)
    if key is not None:
        monkeypatch.setenv("VLLM_API_KEY", key)
    passed, sent = [], []

    async def app(*_: Any) -> None:
        passed.append(True)

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        raise AssertionError("nothing is read")

    headers = [] if given is None else [(b"authorization", f"Bearer {given}".encode())]
    scope = {"type": "http", "path": path, "client": (client, 1), "headers": headers}
    asyncio.run(WeightRoutesGuard(app)(scope, receive, send))
    assert bool(passed) == passes
    if not passes:
        assert (
            sent[0]["status"] == 401
            and "API key" in json.loads(sent[1]["body"])["error"]["message"]
        )

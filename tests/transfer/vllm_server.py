"""Real vLLM servers on a CPU: started, asked and ended, with every process that they start."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster import ROOT, free_port, process_env

START_TIMEOUT_S = 180.0
SHARED_MEMORY = Path("/dev/shm")


@dataclass
class VllmServer:
    """A running server."""

    url: str
    port: int
    process: subprocess.Popen[bytes]
    log: Path

    def wait_until_ready(self) -> None:
        """Until it answers; fails with the end of its log."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self.is_ready():
            assert self.process.poll() is None, f"the server ended:\n{self.tail()}"
            assert time.monotonic() < deadline, f"the server did not start:\n{self.tail()}"
            time.sleep(0.2)

    def is_ready(self) -> bool:
        """Whether it answers /health."""
        try:
            return self.get("health") is not None
        except OSError:
            return False

    def get(self, route: str) -> bytes:
        """The answer to GET."""
        with urllib.request.urlopen(f"{self.url}/{route}", timeout=10) as response:
            return bytes(response.read())

    def post(self, route: str, body: Any, timeout_s: float = 60.0) -> Any:
        """The answer to POST, from JSON to JSON."""
        request = urllib.request.Request(
            f"{self.url}/{route}",
            data=json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=timeout_s) as response:
            return json.loads(response.read())

    def answer(self, prompt: Sequence[int], tokens: int) -> tuple[list[int], list[float]]:
        """Greedy tokens and their log-probs."""
        body = {
            "prompt": list(prompt),
            "max_tokens": tokens,
            "temperature": 0,
            "logprobs": 1,
            "ignore_eos": True,
            "return_token_ids": True,
        }
        choice = self.post("v1/completions", body)["choices"][0]
        return choice["token_ids"], choice["logprobs"]["token_logprobs"]

    @property
    def is_paused(self) -> bool:
        """Whether it holds requests back."""
        return bool(json.loads(self.get("is_paused"))["is_paused"])

    @property
    def version(self) -> str:
        """The weight version that it believes to have."""
        return str(json.loads(self.get("weight_info"))["weight_version"])

    def pids(self) -> list[int]:
        """The server's processes, parents first."""
        return [self.process.pid, *descendants(self.process.pid)]

    def worker_pid(self) -> int:
        """The youngest process: the one that holds the model."""
        return self.pids()[-1]

    def tail(self) -> str:
        """The end of what it printed."""
        return self.log.read_text(errors="replace")[-3000:]

    def end(self) -> None:
        """End all its processes, politely first."""
        pids = self.pids()
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            pass
        for pid in pids:
            if is_alive(pid):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()
        while left := [pid for pid in pids if is_alive(pid)]:
            assert left
            time.sleep(0.02)


def start_server(model: str, log: Path, *, port: int | None = None, tp: int = 1) -> VllmServer:
    """Start a server with weights of its own; it is ready after `wait_until_ready`."""
    port = port or free_port()
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    options = {
        "--model": model,
        "--host": "127.0.0.1",
        "--port": port,
        "--load-format": "dummy",
        "--dtype": "float32",
        "--tensor-parallel-size": tp,
        "--max-model-len": 128,
        "--max-num-seqs": 8,
        "--block-size": 32,
        "--kv-cache-memory-bytes": 16 << 20,
        "--logprobs-mode": "processed_logprobs",
        "--weight-transfer-config": '{"backend": "megarl"}',
    }
    flat = [str(part) for pair in options.items() for part in pair]
    env = process_env() | {
        "VLLM_SERVER_DEV_MODE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    }
    with log.open("wb") as out:
        process = subprocess.Popen(
            [*command, *flat, "--enforce-eager"],
            stdout=out,
            stderr=subprocess.STDOUT,
            env=env,
            cwd=ROOT,
        )
    return VllmServer(f"http://127.0.0.1:{port}", port, process, log)


@contextmanager
def servers(model: str, folder: Path, count: int = 1, tp: int = 1) -> Iterator[list[VllmServer]]:
    """Servers that are ready; they and what they left in shared memory are gone afterwards."""
    before = set(SHARED_MEMORY.iterdir())
    running: list[VllmServer] = []
    try:
        for index in range(count):
            running.append(start_server(model, folder / f"server{index}.log", tp=tp))
        for server in running:
            server.wait_until_ready()
        yield running
    finally:
        for server in running:
            server.end()
        for name in set(SHARED_MEMORY.iterdir()) - before:
            name.unlink(missing_ok=True)


def descendants(pid: int) -> list[int]:
    """Processes below one, parents first."""
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in task.read_text().split():
            found += [int(child), *descendants(int(child))]
    return found


def is_alive(pid: int) -> bool:
    """Whether a process runs (a zombie does not)."""
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rsplit(")", 1)[1].split()[0] != "Z"

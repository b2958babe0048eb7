"""Real vLLM servers on a CPU: started, asked and ended, with every process that they start."""

from __future__ import annotations

import json
import os
import signal
import time
import urllib.request
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cluster import Cluster, free_port

from megarl.layout import ReplicaLayout
from megarl.rollout.servers.keeper import descendants, shared_memory_of

HERE = Path(__file__).parent
ONE = ReplicaLayout()
PROMPT = tuple(range(2, 50))
TOKENS = 12
Answer = tuple[list[int], list[float]]
"""Greedy tokens and their log-probs."""
START_TIMEOUT_S = 180.0
TERM_GRACE_S = 10.0
ENV = {
    "VLLM_SERVER_DEV_MODE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
}


@dataclass
class VllmServer:
    """A running server."""

    url: str
    pid: int
    log: Path
    shared: set[Path] = field(default_factory=set)
    """Its shared memory."""

    def wait_until_ready(self) -> None:
        """Until it answers; fails with the end of its log."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self.is_ready():
            assert is_alive(self.pid), f"the server ended:\n{self.tail()}"
            assert time.monotonic() < deadline, f"the server did not start:\n{self.tail()}"
            time.sleep(0.1)
        self.shared = {name for pid in self.pids() for name in shared_memory_of(pid)}

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

    def answer(self) -> Answer:
        """What it says to PROMPT."""
        body = {
            "prompt": list(PROMPT),
            "max_tokens": TOKENS,
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
        """The server's processes, parents first; the last one holds the model."""
        return [self.pid, *descendants(self.pid)]

    def tail(self) -> str:
        """The end of what it printed."""
        return self.log.read_text(errors="replace")[-3000:]

    def end(self) -> None:
        """End all its processes, politely first."""
        pids = self.pids()
        for pid in pids:
            signal_process(pid, signal.SIGCONT)
        signal_process(self.pid, signal.SIGTERM)
        deadline = time.monotonic() + TERM_GRACE_S
        while any(map(is_alive, pids)):
            if time.monotonic() > deadline:
                for pid in pids:
                    signal_process(pid, signal.SIGKILL)
            time.sleep(0.02)
        for name in self.shared:  # what a killed process could not remove
            name.unlink(missing_ok=True)


def arguments(
    model: str,
    port: int,
    replica: ReplicaLayout,
    backend: str,
    load_format: str,
    max_model_len: int = 128,
) -> list[str]:
    """What a server is told; backend "": it takes no weights."""
    options = {
        "--model": model,
        "--host": "127.0.0.1",
        "--port": port,
        "--load-format": load_format,
        "--dtype": "float32",
        "--tensor-parallel-size": replica.tp,
        "--max-model-len": max_model_len,
        "--max-num-seqs": 8,
        "--block-size": 32,
        "--kv-cache-memory-bytes": 16 << 20,
        "--logprobs-mode": "processed_logprobs",
    }
    if backend:
        options["--weight-transfer-config"] = json.dumps({"backend": backend})
    flags = [
        "--enforce-eager",
        "--enable-scale-out",
        *["--enable-expert-parallel"] * replica.expert_parallel,
    ]
    return [*flags, *(str(part) for pair in options.items() for part in pair)]


class Servers:
    """Starts servers in processes that have everything imported, and ends all of them."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        self._cluster, self._folder = cluster, folder
        self._started: list[VllmServer] = []

    def __enter__(self) -> Servers:
        return self

    def __exit__(self, *_: object) -> None:
        for server in self._started:
            server.end()

    def start(
        self,
        model: str,
        *,
        port: int | None = None,
        replica: ReplicaLayout = ONE,
        backend: str = "megarl",
        load_format: str = "dummy",
        max_model_len: int = 128,
    ) -> VllmServer:
        """A server, with random weights or the folder's ("auto"); see `wait_until_ready`."""
        port = port or free_port()
        log = self._folder / f"server{len(self._started)}.log"
        told = arguments(model, port, replica, backend, load_format, max_model_len)
        pid = self._cluster.fork_script(log, ENV, str(HERE / "serve_forked.py"), *told)
        self._started.append(VllmServer(f"http://127.0.0.1:{port}", pid, log))
        return self._started[-1]

    def reference(self, folders: Sequence[Path]) -> list[Answer]:
        """What fresh servers say that load their weights from folders."""
        fresh = [self.start(str(folder), backend="", load_format="auto") for folder in folders]
        for server in fresh:
            server.wait_until_ready()
        answers = [server.answer() for server in fresh]
        for server in fresh:
            server.end()
        return answers

    def restart(self, server: VllmServer, model: str) -> VllmServer:
        """A new server where one was."""
        server.end()
        new = self.start(model, port=int(server.url.rsplit(":", 1)[1]))
        new.wait_until_ready()
        return new


def same_answer(one: Answer, other: Answer) -> bool:
    """The same tokens, with log-probs that differ by fp32 noise at most."""
    return one[0] == other[0] and all(
        abs(a - b) < 1e-4 for a, b in zip(one[1], other[1], strict=True)
    )


def signal_process(pid: int, number: signal.Signals) -> None:
    """Send a signal to a process that may be gone."""
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def is_alive(pid: int) -> bool:
    """Whether a process runs (a zombie does not)."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rsplit(")", 1)[1].split()[0] != "Z"

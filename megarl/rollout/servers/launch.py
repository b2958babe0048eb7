"""vLLM servers that the run starts: their arguments, their keepers, where they came to be."""

from __future__ import annotations

import json
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megarl.errors import RunError
from megarl.rollout.servers.address import ServerAddress
from megarl.rollout.servers.health import answers
from megarl.rollout.vllm_engine import VllmSettings
from megarl.runtime.device import on_cuda
from megarl.runtime.environment import child_environment, server_api_key

BACKEND = "megarl"
SECRET = "VLLM_API_KEY"  # noqa: S105
"""Variable by which vLLM is told its API key."""
ENVIRONMENT = {
    "VLLM_SERVER_DEV_MODE": "1",  # the routes of weight updates
    "VLLM_NO_USAGE_STATS": "1",
}
CPU_ENVIRONMENT = {"VLLM_CPU_OMP_THREADS_BIND": "nobind"}
POLL_S = 0.2
TAIL = 1500
"""Characters of a server's log that a message shows."""


@dataclass(frozen=True, slots=True)
class LaunchOptions:
    """How many, and where."""

    replicas: int
    folder: Path
    """For their logs."""
    first_gpu: int = 0
    """Those before it on this node are others'."""
    ready_timeout_s: float = 600.0
    srun: tuple[str, ...] | None = None
    """Arguments of srun; None: processes of this node, on loopback."""


def server_arguments(settings: VllmSettings) -> list[str]:
    """vLLM's command line, but for host and port."""
    options: dict[str, Any] = {
        "model": settings.model,
        "load_format": "dummy",
        "dtype": settings.dtype,
        "generation_config": "vllm",  # what the model's folder says of sampling is not asked
        "tensor_parallel_size": settings.replica.tp,
        "pipeline_parallel_size": settings.replica.pp,
        "enable_expert_parallel": settings.replica.expert_parallel,
        "max_model_len": settings.max_model_len,
        "max_num_seqs": settings.max_num_seqs,
        "max_num_batched_tokens": max(settings.max_num_batched_tokens, settings.max_model_len),
        "enforce_eager": settings.enforce_eager,
        "gpu_memory_utilization": settings.gpu_memory_utilization,
        "logprobs_mode": "processed_logprobs",
        "seed": settings.seed,
        "enable_scale_out": True,
        "weight_transfer_config": {"backend": BACKEND},
        "middleware": "megarl.transfer.guard.WeightRoutesGuard",
        "enable_log_requests": False,
        "disable_uvicorn_access_log": True,
    }
    if not on_cuda():
        options["kv_cache_memory_bytes"] = settings.kv_cache_bytes
    return _flags(options | dict(settings.engine_args))


def _flags(options: Mapping[str, Any]) -> list[str]:
    words: list[str] = []
    for name, value in options.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        elif value is not None:
            words += [f"--{flag}", value if isinstance(value, str) else json.dumps(value)]
    return words


class LaunchedServers:
    """The servers of a run, on the rank that asks them; they end with it, however it ends."""

    def __init__(self, settings: VllmSettings, options: LaunchOptions) -> None:
        """Starts them all; `wait` tells when they answer."""
        self._settings, self._options = settings, options
        self._key = server_api_key() or secrets.token_urlsafe(32)
        options.folder.mkdir(parents=True, exist_ok=True)
        self._kept = [self._start(index) for index in range(options.replicas)]

    def wait(self) -> None:
        """Until all answer; RunError with the end of a log where one ends, or takes too long."""
        deadline = time.monotonic() + self._options.ready_timeout_s
        waiting = dict(enumerate(self._kept))
        while waiting:
            for index, kept in list(waiting.items()):
                if not kept.alive:
                    raise RunError(f"rollout.launch: server {index} ended while it started{kept}")
                if kept.address is not None and answers(kept.address):
                    del waiting[index]
            if time.monotonic() > deadline and waiting:
                index, kept = next(iter(waiting.items()))
                raise RunError(
                    f"rollout.launch: server {index} did not answer within ready_timeout_s "
                    f"{self._options.ready_timeout_s:g}{kept}"
                )
            time.sleep(POLL_S)

    def known(self) -> list[ServerAddress]:
        """Where they are; one that has ended is started again, and is known once it answers."""
        for index, kept in enumerate(self._kept):
            if not kept.alive:
                kept.close()
                self._kept[index] = self._start(index)
        return [kept.address for kept in self._kept if kept.address is not None]

    def close(self) -> None:
        """End all; returns when they are gone."""
        for kept in self._kept:
            kept.hang_up()
        for kept in self._kept:
            kept.close()

    def _start(self, index: int) -> _Kept:
        options, log = self._options, self._options.folder / f"server{index}.log"
        local = options.srun is None
        command = [sys.executable, "-m", "megarl.rollout.servers.keeper", "--log", str(log)]
        command += ["--host", "127.0.0.1" if local else "0.0.0.0"]  # noqa: S104
        variables = ENVIRONMENT | {SECRET: self._key}
        if not on_cuda():
            variables |= CPU_ENVIRONMENT
        elif local:
            size = self._settings.replica.size
            first = options.first_gpu + index * size
            variables["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, range(first, first + size)))
        steps = [] if local else ["srun", "--overlap", "--ntasks=1", *(options.srun or ())]
        return _Kept(
            [*steps, *command, "--", *server_arguments(self._settings)],
            child_environment(variables),
            f"server {index}",
            self._key,
            log,
            "127.0.0.1" if local else None,
        )


class _Kept:
    """One keeper, and the server that it keeps."""

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        name: str,
        key: str,
        log: Path,
        host: str | None,
    ) -> None:
        """host: as this process sees it; None: as its keeper says."""
        self.address: ServerAddress | None = None
        """Where it is, once its keeper has said so."""
        self._name, self._key, self._log, self._host = name, key, log, host
        self._process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        threading.Thread(target=self._listen, name=f"megarl-{name}", daemon=True).start()

    @property
    def alive(self) -> bool:
        """Whether it runs, or will."""
        return self._process.poll() is None

    def hang_up(self) -> None:
        """Ask for its end."""
        assert self._process.stdin is not None
        self._process.stdin.close()

    def close(self) -> None:
        """Wait for its end."""
        self.hang_up()
        self._process.wait()

    def __str__(self) -> str:
        """The end of what it printed."""
        said = self._log.read_text(errors="replace") if self._log.is_file() else ""
        return f"; {self._log} ends:\n{said[-TAIL:]}" if said else f"; see {self._log}"

    def _listen(self) -> None:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if line:
            where = json.loads(line)
            url = f"http://{self._host or where['host']}:{where['port']}"
            self.address = ServerAddress(self._name, url, self._key)

"""`RolloutServer`: a vLLM server for a script of one's own, which ends with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from megarl.layout import ReplicaLayout
from megarl.rollout.servers.address import ServerAddress
from megarl.rollout.servers.launch import LaunchedServers, LaunchOptions
from megarl.rollout.vllm_engine import VllmSettings


class RolloutServer:
    """Starts vLLM on this machine, on loopback, with a key of its own; ends it on `close`.

    Args:
        model: Hugging Face folder; its config decides the architecture. Weights are random until
            the first sync, unless vLLM is told load_format="auto".
        engine_args: further arguments of vLLM's, such as load_format or max_num_seqs.
    """

    def __init__(
        self,
        model: str,
        *,
        tensor_parallel_size: int = 1,
        dtype: str = "float32",
        max_model_len: int = 1024,
        kv_cache_megabytes: int = 256,
        log_folder: str | Path = "runs/servers",
        ready_timeout_s: float = 600.0,
        **engine_args: Any,
    ) -> None:
        """Returns when it answers; RunError with the end of its log where it does not."""
        settings = VllmSettings(
            model=model,
            run_name="server",
            replica=ReplicaLayout(tensor_parallel_size),
            dtype=dtype,
            max_model_len=max_model_len,
            kv_cache_bytes=kv_cache_megabytes << 20,
            engine_args=engine_args,
        )
        options = LaunchOptions(1, Path(log_folder), ready_timeout_s=ready_timeout_s)
        self._servers = LaunchedServers(settings, options)
        try:
            self._servers.wait()
        except BaseException:
            self._servers.close()
            raise

    @property
    def address(self) -> ServerAddress:
        """Where it is, with its key: for `RolloutWorker` and `http_servers`."""
        return self._servers.known()[0]

    def close(self) -> None:
        """End it; returns when all its processes are gone."""
        self._servers.close()

    def __enter__(self) -> RolloutServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

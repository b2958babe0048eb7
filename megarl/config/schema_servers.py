"""Settings of rollouts that vLLM servers make; part of the schema."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class LaunchConfig:
    """vLLM servers that the run starts, and ends with itself."""

    replicas: int = 0
    """Servers to start; 0: none, rollout.servers or rollout.servers_file name them."""
    tensor_parallel_size: int | None = None
    """Ranks of each; None: rollout.tensor_parallel_size."""
    ready_timeout_s: float = 600.0
    """How long they may take until they answer."""
    srun: list[str] | None = None
    """Arguments of srun, by which each is started as a step of this SLURM job, such as
    ["--nodes=1", "--gpus=8"]; None: they are processes of the node of rank 0, on its GPUs behind
    those of the run's own ranks."""


@dataclass
class ClientConfig:
    """How samples are given to servers."""

    max_in_flight: int = 256
    """Samples at a server at the same time."""
    timeout_s: float = 600.0
    """Longest wait for the answer to one sample."""
    connect_timeout_s: float = 10.0
    """Longest wait for a connection."""
    patience_s: float = 180.0
    """How long all servers may be silent before the run fails."""
    max_attempts: int = 6
    """Requests of one sample that servers took and did not answer, until the run fails."""
    hedge_factor: float = 4.0
    """A sample that takes this many times as long as nine of ten did is given to a second server
    too, and the first answer counts; 0: never."""

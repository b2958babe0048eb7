"""Who this process is, under torchrun, under srun or alone, and the store all processes share."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from datetime import timedelta

import torch.distributed as dist

from megarl.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Launch:
    """This process's place among all that were started together."""

    rank: int
    world_size: int
    local_rank: int
    """Physical index on the node: picks the GPU."""
    master_addr: str
    master_port: int
    attempt: int
    """Restarts so far; store keys carry it, so that a restart never reads stale ones."""
    launcher: str
    """torchrun, srun or alone."""
    local_world_size: int = 1
    """Ranks of this start on this node."""

    @property
    def run_id(self) -> str:
        """A name that is the same on all processes of this start and on no other."""
        return f"{self.master_addr}-{self.master_port}-{self.attempt}".replace(".", "-")


def read_launch(env: Mapping[str, str]) -> Launch:
    """Read the launcher's variables: torchrun's first, then SLURM's, else a single process.

    Raises ConfigError when only some of a launcher's variables are set.
    """
    if "RANK" in env or "WORLD_SIZE" in env:
        return _from_torchrun(env)
    # A batch script itself has SLURM_PROCID and SLURM_NTASKS too; only srun's tasks have a step.
    if int(env.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
        return _from_slurm(env)
    return Launch(0, 1, 0, "127.0.0.1", free_port(), 0, "alone")


def _from_torchrun(env: Mapping[str, str]) -> Launch:
    missing = [name for name in POOL_VARIABLES if name not in env]
    if missing:
        raise ConfigError(
            f"the environment has some of torchrun's variables but not {', '.join(missing)}; "
            "start with torchrun or srun, or unset RANK and WORLD_SIZE"
        )
    return Launch(
        rank=int(env["RANK"]),
        world_size=int(env["WORLD_SIZE"]),
        local_rank=int(env["LOCAL_RANK"]),
        master_addr=env["MASTER_ADDR"],
        master_port=int(env["MASTER_PORT"]),
        attempt=int(env.get("TORCHELASTIC_RESTART_COUNT", "0")),
        launcher="torchrun",
        local_world_size=int(env.get("LOCAL_WORLD_SIZE", env["WORLD_SIZE"])),
    )


def _from_slurm(env: Mapping[str, str]) -> Launch:
    job = int(env.get("SLURM_JOB_ID", "0"))
    return Launch(
        rank=int(env["SLURM_PROCID"]),
        world_size=int(env["SLURM_STEP_NUM_TASKS"]),
        local_rank=int(env.get("SLURM_LOCALID", "0")),
        master_addr=env.get("MASTER_ADDR") or first_host(env["SLURM_JOB_NODELIST"]),
        master_port=int(env.get("MASTER_PORT") or 20000 + job % 20000),
        attempt=int(env.get("SLURM_RESTART_COUNT", "0")),
        launcher="srun",
        # "8(x4)" or "8,7": the first node's, which has the most.
        local_world_size=int(
            re.split(r"\D", env.get("SLURM_STEP_TASKS_PER_NODE", env["SLURM_STEP_NUM_TASKS"]))[0]
        ),
    )


def first_host(nodelist: str) -> str:
    """The first host of a SLURM node list: `gpu[003-007,012]-ib,cpu1` -> `gpu003-ib`.

    Brackets may be anywhere in a name, and there may be several.
    """
    first = re.match(r"(?:[^\[\],]|\[[^\[\]]+\])+(?=,|$)", nodelist)
    if first is None:
        raise ConfigError(f"SLURM_JOB_NODELIST is {nodelist!r}: no host name in it")
    return re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", first[0])


POOL_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
"""What torchrun sets, and a pool sets anew."""


def write_pool_env(env: MutableMapping[str, str], launch: Launch, rank: int, size: int) -> None:
    """Make the environment describe the pool as if it were the whole job; LOCAL_RANK stays."""
    env["RANK"], env["WORLD_SIZE"] = str(rank), str(size)
    env["LOCAL_RANK"] = str(launch.local_rank)
    env["MASTER_ADDR"], env["MASTER_PORT"] = launch.master_addr, str(launch.master_port)


def open_store(launch: Launch, timeout_s: float) -> dist.TCPStore:
    """Connect to the store of this start; rank 0 hosts it unless torchrun's agent already does."""
    agent_hosts = launch.launcher == "torchrun" and (
        os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    )
    return dist.TCPStore(
        launch.master_addr,
        launch.master_port,
        launch.world_size,
        is_master=launch.rank == 0 and not agent_hosts,
        timeout=timedelta(seconds=timeout_s),
        wait_for_workers=False,
    )


def free_port() -> int:
    """A TCP port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])

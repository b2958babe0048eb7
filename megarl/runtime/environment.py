"""The process environment, read and written for the parts that must not reach for it themselves."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from megarl.runtime.bringup import (
    POOL_VARIABLES,
    Launch,
    first_host,
    read_launch,
    write_pool_env,
)


@dataclass(frozen=True, slots=True)
class SlurmStep:
    """Where in a SLURM job this process is; one process of a step per node."""

    job: str
    restarts: int
    """How often the job was requeued."""
    nodelist: str
    num_nodes: int
    node: int
    """0 to num_nodes - 1."""
    cpus: int | None
    """Given to each task of the step."""
    master_addr: str
    master_port: int

    def describe(self) -> str:
        """One line for the log."""
        return f"SLURM job {self.job}, restart {self.restarts}, nodes {self.nodelist}"


def slurm_step() -> SlurmStep | None:
    """The SLURM step that this process belongs to; None outside of one."""
    env = os.environ
    if "SLURM_JOB_ID" not in env or "SLURM_NODEID" not in env:
        return None
    job, restarts = env["SLURM_JOB_ID"], int(env.get("SLURM_RESTART_COUNT", "0"))
    cpus = env.get("SLURM_CPUS_PER_TASK")
    nodelist = env.get("SLURM_JOB_NODELIST", env.get("SLURMD_NODENAME", ""))
    return SlurmStep(
        job=job,
        restarts=restarts,
        nodelist=nodelist,
        num_nodes=int(env.get("SLURM_STEP_NUM_NODES", env.get("SLURM_NNODES", "1"))),
        node=int(env["SLURM_NODEID"]),
        cpus=int(cpus) if cpus else None,
        master_addr=env.get("MASTER_ADDR") or first_host(nodelist),
        # The next start of the job must not meet what is left of this one's port.
        master_port=int(env.get("MASTER_PORT") or 10000 + (10 * int(job) + restarts) % 20000),
    )


def this_launch() -> Launch:
    """Who this process is, by its environment; ConfigError where that is incomplete."""
    return read_launch(os.environ)


def enter_pool(launch: Launch, rank: int, size: int) -> None:
    """Make the environment describe the pool as if it were the whole job."""
    write_pool_env(os.environ, launch, rank, size)


def leave_pool() -> None:
    """Take away what `enter_pool` wrote, in a process that no launcher started."""
    for name in POOL_VARIABLES:
        os.environ.pop(name, None)


def pool_rank_and_local_rank() -> tuple[int, int]:
    """RANK (the pool's, once it is entered) and LOCAL_RANK (physical, on the node)."""
    return int(os.environ["RANK"]), int(os.environ["LOCAL_RANK"])


SERVER_KEY = "MEGARL_SERVER_API_KEY"
"""Variable with the API key of rollout servers: one in a config would be copied with it."""


def server_api_key() -> str | None:
    """The key of rollout servers, where there is one: the trainer's name for it, or vLLM's."""
    return os.environ.get(SERVER_KEY) or os.environ.get("VLLM_API_KEY") or None


def child_environment(added: Mapping[str, str]) -> dict[str, str]:
    """For a program that is no rank of this run: without what launchers told this process."""
    own = {*POOL_VARIABLES, "LOCAL_WORLD_SIZE", "GROUP_RANK", "ROLE_RANK", "ROLE_WORLD_SIZE"}
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in own and not name.startswith("TORCHELASTIC_")
    }
    return kept | dict(added)


def processors_of_a_rank() -> int:
    """This rank's share of the node's processors, at least 1."""
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE") or 1)
    return max(len(os.sched_getaffinity(0)) // ranks, 1)


def set_variables(values: Mapping[str, str], *, keep_given: bool = False) -> None:
    """Set variables; `keep_given` leaves those alone that the user has set."""
    for name, value in values.items():
        if not keep_given or name not in os.environ:
            os.environ[name] = value

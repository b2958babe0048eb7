"""Who a process is, from the variables of its launcher."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from megarl.errors import ConfigError
from megarl.runtime.bringup import first_host, read_launch, write_pool_env

TORCHRUN = {
    "RANK": "5",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "1",
    "MASTER_ADDR": "10.0.0.7",
    "MASTER_PORT": "29511",
    "TORCHELASTIC_RESTART_COUNT": "2",
}
SLURM = {
    "SLURM_PROCID": "3",
    "SLURM_NTASKS": "4",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_LOCALID": "1",
    "SLURM_JOB_NODELIST": "gpu[003-007,012],cpu1",
    "SLURM_JOB_ID": "41234",
}


def test_torchrun() -> None:
    launch = read_launch(TORCHRUN | SLURM)  # torchrun inside a SLURM job: torchrun decides
    assert (launch.rank, launch.world_size, launch.local_rank) == (5, 8, 1)
    assert (launch.master_addr, launch.master_port) == ("10.0.0.7", 29511)
    assert launch.launcher == "torchrun" and launch.attempt == 2
    assert read_launch(TORCHRUN | {"LOCAL_WORLD_SIZE": "4"}).local_world_size == 4


def test_srun() -> None:
    launch = read_launch(SLURM)
    assert (launch.rank, launch.world_size, launch.local_rank) == (3, 4, 1)
    assert launch.master_addr == "gpu003" and launch.launcher == "srun"
    for tasks, here in (("8(x4)", 8), ("4,3", 4), ("2", 2)):
        assert read_launch(SLURM | {"SLURM_STEP_TASKS_PER_NODE": tasks}).local_world_size == here
    others = [read_launch(SLURM | {"SLURM_PROCID": str(rank)}) for rank in range(4)]
    assert len({(one.master_addr, one.master_port, one.run_id) for one in others}) == 1


def test_alone() -> None:
    launch = read_launch({})
    assert (launch.rank, launch.world_size, launch.launcher) == (0, 1, "alone")
    one = {"SLURM_PROCID": "0", "SLURM_NTASKS": "1", "SLURM_STEP_NUM_TASKS": "1"}
    assert read_launch(one).launcher == "alone"
    batch_script = {key: value for key, value in SLURM.items() if "STEP" not in key}
    assert read_launch(batch_script | {"SLURM_PROCID": "0"}).launcher == "alone"


def test_half_of_torchruns_variables_is_refused() -> None:
    with pytest.raises(ConfigError, match="LOCAL_RANK, MASTER_ADDR, MASTER_PORT"):
        read_launch({"RANK": "0", "WORLD_SIZE": "2"})


def test_every_start_has_a_name_of_its_own() -> None:
    names = {
        read_launch(TORCHRUN | changed).run_id
        for changed in (
            {},
            {"MASTER_PORT": "29512"},
            {"MASTER_ADDR": "10.0.0.8"},
            {"TORCHELASTIC_RESTART_COUNT": "3"},
        )
    }
    assert len(names) == 4
    assert all("/" not in name and "." not in name for name in names)


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("gpu003", "gpu003"),
        ("gpu[003-007,012]", "gpu003"),
        ("a1,a2", "a1"),
        ("n[1,3]", "n1"),
        ("rack-2-node[08-09]", "rack-2-node08"),
        ("node[01-02]-ib", "node01-ib"),
        ("rack[0-1]n[0-3]", "rack0n0"),
        ("a[1-2]b[03,07]-x,c[1-9]", "a1b03-x"),
        ("n[10]", "n10"),
        ("host.with-dots,other[1-2]", "host.with-dots"),
    ],
)
def test_first_host_of_a_node_list(nodes: str, first: str) -> None:
    assert first_host(nodes) == first


@pytest.mark.skipif(shutil.which("scontrol") is None, reason="there is no scontrol")
@pytest.mark.parametrize("nodes", ["gpu[003-007,012],cpu1", "rack[0-1]n[0-3]", "a1,a2", "n[10]"])
def test_scontrol_says_the_same(nodes: str) -> None:
    command = ["scontrol", "show", "hostnames", nodes]
    if subprocess.run(["scontrol", "show", "hostnames", "n"], capture_output=True).returncode:
        pytest.skip("scontrol finds no slurm.conf")
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert first_host(nodes) == shown.split()[0]


@pytest.mark.parametrize("nodes", ["", ",a", "n[1-3", "n[]", "n1]"])
def test_what_is_no_node_list_is_refused(nodes: str) -> None:
    with pytest.raises(ConfigError, match="SLURM_JOB_NODELIST"):
        first_host(nodes)


def test_the_environment_describes_the_pool() -> None:
    """RANK and WORLD_SIZE become the pool's; LOCAL_RANK stays the physical index."""
    env = dict(TORCHRUN)
    write_pool_env(env, read_launch(TORCHRUN), rank=1, size=4)
    assert (env["RANK"], env["WORLD_SIZE"], env["LOCAL_RANK"]) == ("1", "4", "1")
    assert (env["MASTER_ADDR"], env["MASTER_PORT"]) == ("10.0.0.7", "29511")

"""A real SLURM on this machine: two pretended nodes, all of it inside one folder.

    python tests/slurm/local_slurm.py start FOLDER    # then: export SLURM_CONF=FOLDER/slurm.conf
    python tests/slurm/local_slurm.py stop FOLDER     # ends its jobs, then what it started

It needs Debian's slurm-wlm and munge, and root. Key, socket, ports and state are its own: a SLURM
or munge that is there already is not touched.
"""

from __future__ import annotations

import json
import os
import pwd
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "scancel")
NODES = ("n1", "n2")
CPUS = 8
"""Pretended, of each node."""
STARTED = "started.json"
ANSWER_S = 60.0
REQUEUE_WAIT_S = 5
"""A requeued job waits so long; SLURM's own default is 120."""
KILL_WAIT_S = 20
"""Between SIGTERM and SIGKILL to the steps of a job that is ended."""


def missing() -> str | None:
    """Why a SLURM cannot be started here; None where it can."""
    absent = [name for name in PROGRAMS if _program(name) is None]
    if absent:
        return f"{', '.join(absent)} not found: apt-get install slurm-wlm munge"
    return None if os.geteuid() == 0 else "SLURM's daemons want root"


def start(folder: Path) -> Path:
    """Start all daemons, and wait until both nodes are idle; returns the slurm.conf."""
    if problem := missing():
        raise SystemExit(f"local_slurm: {problem}")
    folder = folder.absolute()
    for name in ("munge", "state", "log", *(f"spool/{node}" for node in NODES)):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for each in (folder, folder / "munge"):  # munged wants the way to its socket open
        each.chmod(0o755)
    key = folder / "munge/key"
    key.write_bytes(secrets.token_bytes(128))
    key.chmod(0o400)
    conf = folder / "slurm.conf"
    conf.write_text(_conf(folder))
    if _version() >= (23, 11):  # others have no such plugin, and do without control groups
        (folder / "cgroup.conf").write_text("CgroupPlugin=disabled\n")
    _launch(folder, "munged", "--foreground", "--force", *_munge_options(folder))
    _wait_for(lambda: (folder / "munge/socket").exists(), folder, "munged")
    _launch(folder, "slurmctld", "-D", "-f", str(conf))
    for node in NODES:
        _launch(folder, "slurmd", "-D", "-f", str(conf), "-N", node)
    _wait_for(lambda: _idle(conf) == len(NODES), folder, "slurmctld and slurmd")
    return conf


def stop(folder: Path) -> None:
    """Cancel its jobs, then end the daemons, by the process ids that were written down."""
    folder = folder.absolute()
    conf, started = folder / "slurm.conf", folder / STARTED
    if not started.exists():
        return
    env = os.environ | {"SLURM_CONF": str(conf)}
    quiet = {"env": env, "capture_output": True, "text": True, "check": False, "timeout": 30}
    users = ["scancel", "--full", "--signal=KILL", "--user", pwd.getpwuid(os.getuid()).pw_name]
    try:
        subprocess.run(users, **quiet)  # type: ignore[call-overload]
        subprocess.run(users[:1] + users[3:], **quiet)  # type: ignore[call-overload]
        deadline = time.monotonic() + 15
        while time.monotonic() < deadline:
            if not subprocess.run(["squeue", "-h"], **quiet).stdout.strip():  # type: ignore[call-overload]
                break
            time.sleep(0.3)
    except subprocess.TimeoutExpired:
        pass
    for pid in reversed(json.loads(started.read_text())):
        _end(pid, folder)
    started.unlink()


def _version() -> tuple[int, int]:
    # Commands for users look for a slurm.conf before they say it.
    words = ["slurmctld", "-V"]
    said = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    year, month = re.findall(r"(\d+)\.(\d+)", said)[0]
    return int(year), int(month)


def _conf(folder: Path) -> str:
    ports = _free_ports(2 + len(NODES))
    host = socket.gethostname()
    nodes = "\n".join(
        f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={CPUS} "
        "RealMemory=1000 State=UNKNOWN"
        for name, port in zip(NODES, ports[2:], strict=True)
    )
    return f"""ClusterName=here
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket,cred_expire={REQUEUE_WAIT_S}
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2
ReturnToService=2
KillWait={KILL_WAIT_S}
MpiDefault=none
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd.%n.log
SlurmdParameters=config_overrides
{nodes}
PartitionName=all Nodes={",".join(NODES)} Default=YES MaxTime=INFINITE OverSubscribe=YES State=UP
"""


def _free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [int(probe.getsockname()[1]) for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def _munge_options(folder: Path) -> list[str]:
    names = ("key-file=key", "socket=socket", "pid-file=pid", "log-file=log", "seed-file=seed")
    pairs = (name.split("=") for name in names)
    return [f"--{option}={folder / 'munge' / file}" for option, file in pairs]


def _program(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")


def _launch(folder: Path, program: str, *options: str) -> None:
    """A daemon that outlives this process; its process id is written down at once."""
    known = folder / STARTED
    with (folder / "log" / f"{program}.out").open("ab") as out:
        process = subprocess.Popen(
            [_program(program) or program, *options],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    pids = json.loads(known.read_text()) if known.exists() else []
    known.write_text(json.dumps([*pids, process.pid]))


def _idle(conf: Path) -> int:
    """Nodes that would take a job."""
    asked = subprocess.run(
        ["sinfo", "-h", "-N", "-t", "idle", "-o", "%N"],
        env=os.environ | {"SLURM_CONF": str(conf)},
        capture_output=True,
        text=True,
        check=False,
    )
    return len(asked.stdout.split())


def _wait_for(condition: object, folder: Path, what: str) -> None:
    deadline = time.monotonic() + ANSWER_S
    pids = json.loads((folder / STARTED).read_text())
    while not condition():  # type: ignore[operator]
        if time.monotonic() > deadline or not all(_lives(pid, folder) for pid in pids):
            stop(folder)
            logs = "".join(p.read_text()[-1500:] for p in sorted((folder / "log").iterdir()))
            raise SystemExit(f"local_slurm: {what} did not answer in {ANSWER_S:.0f} s\n{logs}")
        time.sleep(0.2)


def _end(pid: int, folder: Path) -> None:
    """SIGTERM, then SIGKILL, to a daemon of that folder."""
    for number, patience in ((signal.SIGTERM, 5.0), (signal.SIGKILL, 5.0)):
        deadline = time.monotonic() + patience
        while _is_ours(pid, folder) and time.monotonic() < deadline:
            os.kill(pid, number)
            time.sleep(0.2)


def _lives(pid: int, folder: Path) -> bool:
    """Whether a daemon runs; one that has only just been started has no command line yet."""
    for _ in range(10):
        if _is_ours(pid, folder):
            return True
        time.sleep(0.05)
    return False


def _is_ours(pid: int, folder: Path) -> bool:
    try:
        os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        pass
    try:
        return str(folder) in Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return False


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] not in ("start", "stop"):
        raise SystemExit(__doc__)
    if sys.argv[1] == "start":
        sys.stdout.write(f"SLURM_CONF={start(Path(sys.argv[2]))}\n")
    else:
        stop(Path(sys.argv[2]))

"""Jobs on a real SLURM of two pretended nodes: signals, requeues, and a chain that is preempted."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cluster import process_env
from forked_runs import difference, outcome
from preempted import STEPS, checkpointed, write_pipeline
from tiny_models import TinyModels

from megarl.cli.main import RUNS
from megarl.pipeline.records import Records
from megarl.pipeline.spec import load_pipeline
from megarl.slurm.script import Job, script

pytestmark = [pytest.mark.slow, pytest.mark.dist]
HERE = Path(__file__).parent


def env() -> dict[str, str]:
    """Of the jobs too; pretended nodes have names that nothing resolves."""
    base = process_env()
    path = os.pathsep.join([str(HERE), base["PYTHONPATH"]])
    return base | {"PYTHONPATH": path, "MASTER_ADDR": "127.0.0.1"}


def ask(*words: str) -> str:
    done = subprocess.run(words, env=env(), capture_output=True, text=True, check=True)
    return done.stdout.strip()


def wait_for(condition: Callable[[], Any], seconds: float, log: Callable[[], str]) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, log()
        time.sleep(0.1)


def state(job: str) -> dict[str, str]:
    """What scontrol says of a job."""
    words = ask("scontrol", "show", "job", job, "--oneliner").split()
    return dict(word.partition("=")[::2] for word in words)


def test_a_job_that_is_told_to_save_requeues_itself(slurm: Path, tmp_path: Path) -> None:
    """SIGUSR1 as `--signal` sends it; the job that waits for the end waits on."""
    job = Job(
        name="listen", title="Ranks that listen.", nodes=2, ranks_per_node=2, gpus_per_node=0,
        time=None, save_s=60, words=("listening_rank", "listen", str(tmp_path)), launched=True,
        python=sys.executable, host_python=sys.executable, workdir=tmp_path,
        output=tmp_path / "job.out", cpus_per_node=2,
    )  # fmt: skip
    (tmp_path / "job.sh").write_text(script(job))
    (tmp_path / "next.sh").write_text(f"#!/bin/bash\ntouch {tmp_path}/next\n")
    first = ask("sbatch", "--parsable", str(tmp_path / "job.sh"))
    after = (
        "sbatch",
        "--parsable",
        f"--dependency=afterok:{first}",
        f"--output={tmp_path}/next.out",
    )
    second = ask(*after, str(tmp_path / "next.sh"))

    def log() -> str:
        return (tmp_path / "job.out").read_text()

    wait_for(lambda: len(list(tmp_path.glob("*.up"))) == 4, 90, log)
    places = [(tmp_path / f"{rank}.up").read_text() for rank in range(4)]
    assert places == ["0 0 4", "1 1 4", "2 0 4", "3 1 4"]
    ask("scancel", "--signal=USR1", first)
    wait_for(lambda: state(first)["Restarts"] == "1", 60, log)
    assert not (tmp_path / "next").exists()
    assert len(list(tmp_path.glob("*.signals"))) == 4
    wait_for(lambda: state(first)["JobState"] == "COMPLETED", 90, log)
    wait_for((tmp_path / "next").exists, 60, lambda: str(state(second)))
    assert f"job {first}, restart 1, nodes n[1-2]" in log()


def test_names_with_spaces_and_an_environment(slurm: Path, tmp_path: Path) -> None:
    """sbatch reads the quotes as they are meant."""
    folder, file = tmp_path / "my 100% #1 run", tmp_path / "my env.sh"
    folder.mkdir()
    file.write_text("export LIBRARIES=/x:$NOT_SET\n")
    output = Path(str(folder).replace("%", "%%")) / "job-%j.out"
    job = Job(
        name='my "job" #1', title="A job with a name.", nodes=1, ranks_per_node=1, gpus_per_node=0,
        time=None, save_s=60, launched=False, python=sys.executable, host_python=sys.executable,
        words=("bash", "-c", 'echo "$SLURM_JOB_NAME with $LIBRARIES"'), workdir=folder,
        output=output, env_file=file, sbatch_options=("--comment=a 'b' c",),
    )  # fmt: skip
    (tmp_path / "job.sh").write_text(script(job))
    number = ask("sbatch", "--parsable", str(tmp_path / "job.sh"))
    assert "Comment=a 'b' c" in ask("scontrol", "show", "job", number)
    written = folder / f"job-{number}.out"
    wait_for(lambda: state(number)["JobState"] == "COMPLETED", 60, lambda: str(state(number)))
    assert 'my "job" #1 with /x:' in written.read_text().splitlines()


def megarl(*words: str) -> None:
    command = [sys.executable, "-m", "megarl.cli.main", *words]
    done = subprocess.run(command, env=env(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]


def test_a_preempted_chain_ends_as_an_undisturbed_one(
    slurm: Path, tiny: TinyModels, tmp_path: Path
) -> None:
    file, out = write_pipeline(tmp_path, tiny("llama")), tmp_path / "out"
    sizes = ("--nodes=2", "--gpus-per-node=0", "--tasks-per-node=1", "--cpus-per-node=2")
    megarl("submit", str(file), *sizes, "--time=30")
    records = Records(out)

    def log() -> str:
        return "".join(path.read_text()[-2000:] for path in sorted((out / "slurm").glob("*.out")))

    def job() -> str:
        names = ask("squeue", "--noheader", "--format=%i %j").splitlines()
        return next((line.split()[0] for line in names if line.endswith("-ppo")), "")

    # Preempted once, then told that its time is nearly up, as `--signal` does.
    for restarts, words in enumerate((("scontrol", "requeue"), ("scancel", "--signal=USR1"))):
        before = checkpointed(out / "ppo")
        wait_for(lambda: checkpointed(out / "ppo") >= before + 2, 240, log)  # noqa: B023
        assert checkpointed(out / "ppo") < STEPS - 1, "too late to disturb it"
        ppo = job()
        ask(*words, ppo)
        wait_for(lambda: state(ppo)["Restarts"] == str(restarts + 1), 120, log)  # noqa: B023
    done = lambda: (record := records.read("ppo")) is not None and record.state == "done"  # noqa: E731
    wait_for(done, 240, log)
    wait_for(lambda: not job(), 60, log)
    wait_for((out / "report.json").exists, 10, log)
    written = "".join(path.read_text() for path in (out / "slurm").glob("*.out"))
    assert "saved; requeued" in written

    said = (out / "ppo/logs/rank_0.log").read_text()
    for restart in (0, 1, 2):
        assert f"SLURM job {ppo}, restart {restart}, nodes n[1-2]" in said

    whole = load_pipeline(file, commands=tuple(RUNS)).stage("ppo").words()
    megarl(*whole, f"run.dir={tmp_path / 'whole'}")
    found = outcome(out / "ppo", STEPS)
    assert difference(found, outcome(tmp_path / "whole", STEPS)) is None
    assert [row["step"] for row in found["metrics"]] == list(range(STEPS + 1))
    checkpoint = found["checkpoint"]
    assert checkpoint["roles"].keys() == {"actor", "critic"} and len(checkpoint["generators"]) == 2
    for role in checkpoint["roles"].values():
        assert any("exp_avg_sq" in name for name in role["tensors"])


def test_what_follows_a_failure_is_cancelled(slurm: Path, tmp_path: Path) -> None:
    stages = "[{name: one, run: 'false'}, {name: two, run: 'true'}]"
    (tmp_path / "two.yaml").write_text(f"dir: {tmp_path / 'out'}\nstages: {stages}\n")
    megarl("submit", str(tmp_path / "two.yaml"), "--nodes=1", "--gpus-per-node=0",
           "--tasks-per-node=1")  # fmt: skip
    records = Records(tmp_path / "out")
    jobs = lambda: ask("squeue", "--noheader", "--format=%i %j")  # noqa: E731
    wait_for(lambda: "two-" not in jobs(), 60, jobs)
    assert [records.read(name).state for name in ("one", "two")] == ["started", "submitted"]  # type: ignore[union-attr]

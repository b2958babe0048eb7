"""What `megarl submit` would hand to SLURM, without one: scripts, sizes, refusals."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from megarl.cli.main import RUNS
from megarl.config.load import load_with_origins
from megarl.config.save import save_resolved
from megarl.errors import ConfigError
from megarl.pipeline.check import load_stages
from megarl.pipeline.records import Record, Records, wanted_records
from megarl.pipeline.spec import load_pipeline
from megarl.slurm import commands
from megarl.slurm.commands import main
from megarl.slurm.options import seconds_of
from megarl.slurm.script import Job, script

CPU = ("--nodes=2", "--gpus-per-node=0", "--tasks-per-node=2")


@pytest.fixture
def file(made: Path, tmp_path: Path) -> Path:
    """A pipeline of a tool, fine-tuning and PPO, on four ranks."""
    config = f"""
actor: {{model: {{path: {made / "model"}}}, mesh: t2p2}}
rollout: {{tensor_parallel_size: 2, engine: vllm}}
data: {{train_path: {made / "train.jsonl"}, response_column: label, rollout_batch_size: 16,
        max_prompt_length: 64, max_response_length: 64}}
algorithm: {{global_batch_size: 16}}
"""
    (tmp_path / "one.yaml").write_text(config)
    own = {"actor.model.path": "${base.model}"}
    stages: list[dict[str, Any]] = [
        {"name": "data", "run": "python -m tool 'a b'"},
        {"name": "base", "command": "sft", "config": "one.yaml"},
        {"name": "ppo", "command": "train", "config": "one.yaml", "overrides": own},
    ]
    stages[2]["slurm"] = {"nodes": 4, "time": "2-0"}
    path = tmp_path / "three.yaml"
    path.write_text(yaml.safe_dump({"dir": str(tmp_path / "out"), "stages": stages}))
    return path


def submit(file: Path, *arguments: str) -> list[str]:
    said: list[str] = []
    assert main([str(file), *arguments], tuple(RUNS), said.append) == 0
    return said


def scripts(shown: str) -> list[str]:
    """The scripts that a dry run prints; all of them are shell."""
    found = [part for part in shown.split("# /") if part.strip()]
    texts = [part.partition("\n")[2] for part in found]
    for text in texts:
        subprocess.run(["bash", "-n"], input=text, text=True, check=True)
    return texts


def options(text: str) -> dict[str, str]:
    lines = [line.removeprefix("#SBATCH --") for line in text.splitlines() if "#SBATCH" in line]
    return {name: value for name, _, value in (line.partition("=") for line in lines)}


def test_a_script_per_stage(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    submit(file, *CPU, "--time=1:00:00", "--account=me", "--sbatch=--qos=low", "--dry-run")
    data, base, ppo = scripts(capsys.readouterr().out)
    assert options(data)["nodes"] == "1" and "megarl.slurm.node" not in data
    assert f"{sys.executable} -m tool 'a b'" in data
    # A plain command would die of the signal, with nothing saved, and be requeued for ever.
    assert "signal" not in options(data) and "scontrol" not in data and "scontrol" in base
    for text, nodes in ((base, "2"), (ppo, "4")):
        assert options(text)["nodes"] == nodes and options(text)["ntasks-per-node"] == "1"
        assert "gpus-per-node" not in options(text)
        assert "-m megarl.slurm.node --nproc-per-node=2" in text
    wanted = {"requeue": "", "signal": "USR1@300", "time": "1:00:00", "account": "me", "qos": "low"}
    assert wanted.items() <= options(base).items()
    assert options(ppo)["time"] == "2-0"
    assert not (file.parent / "out").exists()


def test_gpus_a_container_and_an_environment(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "my env.sh").touch()
    gpus = ("--nodes=1", "--gpus-per-node=4", "--container-image=img#x", "--container-mounts=/d:/d")
    submit(file, *gpus, f"--env-file={tmp_path / 'my env.sh'}", "--dry-run", "ppo.actor.mesh=t2p2")
    _, base, ppo = scripts(capsys.readouterr().out)
    assert options(base)["gpus-per-node"] == "4" and "exclusive" in options(base)
    assert "'--container-image=img#x' --container-mounts=/d:/d" in base
    assert f"source {shlex.quote(str(tmp_path / 'my env.sh'))} || " in base
    assert "    python -m megarl.slurm.node --nproc-per-node=4" in base
    assert "    actor.mesh=t2p2" in ppo


def test_this_machine_is_no_node(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A device that is not here is no reason to refuse; a file that is not here is one."""
    gpus = ("--nodes=1", "--gpus-per-node=4", "ppo.rollout.enable_sleep_mode=true", "--dry-run")
    assert submit(file, *gpus) == ["not checked here: device and engines"]
    with pytest.raises(ConfigError, match="stage base: data.train_path: .*/nowhere.jsonl"):
        submit(file, *gpus, "base.data.train_path=/nowhere.jsonl")
    inside = submit(file, *gpus, "base.data.train_path=/nowhere.jsonl", "--container-image=i")
    assert inside == ["not checked here: weights, tokenizer, data, device and engines"]


def test_a_run_that_cannot_go_on_is_not_submitted(file: Path) -> None:
    """Before hours in the queue; a stage that is done is not looked at."""
    ppo = file.parent / "out/ppo"
    loaded = load_with_origins(file.with_name("one.yaml"), ["actor.model.path=another"])
    save_resolved(loaded.config, loaded.origins, ppo / "config.yaml", "train")
    (ppo / "metrics.jsonl").touch()
    with pytest.raises(ConfigError, match="stage ppo: .*out/ppo holds a run with other settings"):
        submit(file, *CPU, "--dry-run")
    own = (file.with_name("one.yaml"), *CPU, "--dry-run", f"run.dir={ppo}")
    with pytest.raises(ConfigError, match="actor.model.path was 'another'"):
        submit(*own)
    submit(*own, "checkpoint.resume_mode=never")
    pipeline = load_pipeline(file, commands=tuple(RUNS))
    records = Records(pipeline.folder)
    record = wanted_records(pipeline, load_stages(pipeline))["ppo"]
    records.write(record)
    records.mark("ppo", "done", 1.0)
    submit(file, *CPU, "--dry-run")


def bash(text: str, folder: Path, *programs: str, status: int = 0) -> list[str]:
    """Run a script where `programs` do nothing but say how they were called; what they said."""
    for name in programs:
        (folder / name).write_text(f'#!/bin/sh\necho {name} "$@" >> {folder}/called\n')
        (folder / name).chmod(0o755)
    env = os.environ | {"PATH": f"{folder}:{os.environ['PATH']}", "FOLDER": str(folder)}
    env |= {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n1"}
    env.pop("NOT_SET", None)
    done = subprocess.run(["bash"], input=text, text=True, env=env, capture_output=True)
    assert done.returncode == status, done.stdout + done.stderr
    called = folder / "called"
    said = called.read_text().splitlines() if called.exists() else []
    called.unlink(missing_ok=True)
    return said


def job(folder: Path, **changes: Any) -> Job:
    """One that runs a word."""
    own: dict[str, Any] = dict(
        name="job", title="A job.", nodes=1, ranks_per_node=1, gpus_per_node=0, time=None,
        save_s=60, words=("work",), launched=False, python="python", host_python=sys.executable,
        workdir=folder, output=folder / "job.out",
    )  # fmt: skip
    return Job(**own | changes)


def test_an_environment_may_read_what_is_not_set(tmp_path: Path) -> None:
    """And one that is not there, or fails, ends the job before anything is started."""
    file = tmp_path / "my env.sh"
    file.write_text('export LIBRARIES=/x:$NOT_SET\necho "$LIBRARIES" >> "$FOLDER/called"\n')
    text = script(job(tmp_path, env_file=file))
    srun = "srun --wait=120 --cpu-bind=none work"
    assert bash(text, tmp_path, "srun") == ["/x:", srun]
    file.write_text("false\n")
    assert bash(text, tmp_path, "srun", status=1) == []
    file.unlink()
    assert bash(text, tmp_path, "srun", status=1) == []
    gone = script(job(tmp_path, workdir=tmp_path / "gone"))
    assert bash(gone, tmp_path, "srun", status=1) == []


def test_a_stage_that_is_done_is_not_done_again(file: Path, tmp_path: Path) -> None:
    """Whatever requeued its job; one that was begun goes on."""
    pipeline = load_pipeline(file, commands=tuple(RUNS))
    records = Records(pipeline.folder)
    records.begin(pipeline)
    wanted = wanted_records(pipeline, load_stages(pipeline))
    for record in wanted.values():
        records.write(record)
    text = script(job(tmp_path, mark=(str(pipeline.folder), "base")))

    def record() -> Record:
        found = records.read("base")
        assert found is not None
        return found

    for state in ("submitted", "started"):
        records.mark("base", state, 0.0)  # type: ignore[arg-type]
        assert bash(text, tmp_path, "srun") == ["srun --wait=120 --cpu-bind=none work"]
        assert record().state == "done"
    before = record()
    assert bash(text, tmp_path, "srun") == []
    assert record() == before
    records.path("base").write_text("cut off")
    assert bash(text, tmp_path, "srun", status=1) == []


def test_names_with_spaces(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """sbatch takes quotes as a shell does, and replaces what follows a %."""
    folder = file.parent / "my 100% run"
    one = (file.with_name("one.yaml"), "--command=sft", *CPU, "--dry-run", "resources={}")
    submit(*one, f"run.dir={folder}", '--sbatch=--comment=a "b" #c')
    (text,) = scripts(capsys.readouterr().out)
    lines = [line.removeprefix("#SBATCH ") for line in text.splitlines() if "#SBATCH" in line]
    words = [word for line in lines for word in shlex.split(line)]
    assert len(words) == len(lines)
    output = str(folder / "slurm/sft-%j.out").replace("100%", "100%%")
    assert {"--job-name=my 100% run", f"--output={output}", '--comment=a "b" #c'} <= set(words)


@pytest.mark.parametrize("name", ["two\nlines", "back\\slash", "a\ttab"])
def test_a_name_that_no_line_can_hold(name: str, tmp_path: Path) -> None:
    for changes in ({"name": name}, {"output": tmp_path / name}, {"title": name}):
        with pytest.raises(ConfigError, match="give another name or folder"):
            script(job(tmp_path, **changes))


def test_one_config(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = file.with_name("one.yaml")
    folder = f"run.dir={file.parent / 'run'}"
    submit(config, "--command=sft", *CPU, "--dry-run", folder, "resources={}")
    (text,) = scripts(capsys.readouterr().out)
    assert "-m megarl.cli.main sft" in text and "megarl.pipeline.mark" not in text
    assert f"\n    {folder} \\\n" in text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--nodes=0", "--gpus-per-node=8"), ("--nodes is 0", "at least 1")),
        (("--nodes=1", "--gpus-per-node=0"), ("--gpus-per-node is 0", "--tasks-per-node")),
        (("--nodes=1", "--gpus-per-node=8", "--tasks-per-node=2"), ("--tasks-per-node 2", "8")),
        ((*CPU, "--time=4"), ("--time 4 is 240 s", "--save-seconds 300")),
        ((*CPU, "--time=soon"), ("--time is 'soon'",)),
        ((*CPU, "--command=train"), ("--command train", "pipeline")),
        ((*CPU, "--env-file=/nowhere"), ("--env-file /nowhere",)),
        (("--nodes=3", *CPU[1:]), ("stage base", "6 ranks")),
        ((*CPU, "ppo.actor.mesh=t4"), ("stage ppo", "tensor_model_parallel_size")),
    ],
)
def test_what_cannot_run_is_not_submitted(
    arguments: tuple[str, ...], words: tuple[str, ...], file: Path
) -> None:
    with pytest.raises(ConfigError) as caught:
        submit(file, *arguments)
    for word in words:
        assert word in str(caught.value)
    assert not (file.parent / "out").exists()


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("5", 300), ("1:30", 90), ("2:00:00", 7200), ("1-2", 93600), ("1-0:30", 88200),
     ("0-0:0:7", 7)],
)  # fmt: skip
def test_time_limits(text: str, seconds: int) -> None:
    assert seconds_of(text) == seconds


def fake_slurm(
    monkeypatch: pytest.MonkeyPatch, refused: str = "none", queue: Sequence[str] | None = ()
) -> list[list[str]]:
    """Records what is asked of SLURM; `refused` is part of a script that sbatch does not take.

    queue: ids of the jobs in it; None: the controller does not answer.
    """
    calls: list[list[str]] = []

    def answer(words: Any, **_: Any) -> Any:
        calls.append(list(words))
        if words[0] == "squeue":
            failed = "slurm_load_jobs error:\nUnable to contact slurm controller"
            if queue is None:
                return SimpleNamespace(returncode=1, stdout="", stderr=failed)
            return SimpleNamespace(returncode=0, stdout="\n".join(queue), stderr="")
        bad = words[0] == "sbatch" and refused in words[-1]
        ids = sum(call[0] == "sbatch" for call in calls) + 10
        return SimpleNamespace(returncode=int(bad), stdout=f"{ids};here\n", stderr="no such\nqos")

    monkeypatch.setattr(commands.subprocess, "run", answer)
    return calls


def test_jobs_are_chained(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = fake_slurm(monkeypatch)
    submit(file, *CPU)
    first, second, third = calls
    assert not any("dependency" in word for word in first)
    assert "--dependency=afterok:11" in second and "--dependency=afterok:12" in third
    folder = file.parent / "out/slurm"
    assert json.loads((folder / "jobs.json").read_text()) == {
        "data": "11",
        "base": "12",
        "ppo": "13",
    }
    assert third[-1] == str(folder / "3-ppo.sh")
    fake_slurm(monkeypatch, queue=("112", "12", "1"))
    with pytest.raises(ConfigError, match="jobs 12 of an earlier submission"):
        submit(file, *CPU)
    calls = fake_slurm(monkeypatch, queue=None)
    with pytest.raises(ConfigError, match="squeue failed .*Unable to contact.*: try again"):
        submit(file, *CPU)
    assert [call[0] for call in calls] == ["squeue"]
    fake_slurm(monkeypatch, queue=("112",))
    submit(file, *CPU)
    (folder / "jobs.json").write_text("{")
    with pytest.raises(ConfigError, match="jobs.json cannot be read"):
        submit(file, *CPU)


def test_what_sbatch_refuses_takes_the_others_back(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = fake_slurm(monkeypatch, refused="3-ppo")
    with pytest.raises(ConfigError, match="3-ppo.sh: sbatch refused it: no such qos"):
        submit(file, *CPU)
    assert calls[-1] == ["scancel", "11", "12"]

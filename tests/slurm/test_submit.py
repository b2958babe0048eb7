"""What `megarl submit` would hand to SLURM, without one: scripts, sizes, refusals."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from megarl.cli.main import RUNS
from megarl.errors import ConfigError
from megarl.slurm import commands
from megarl.slurm.commands import main
from megarl.slurm.options import seconds_of

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
    assert f"source {shlex.quote(str(tmp_path / 'my env.sh'))}" in base
    assert "    python -m megarl.slurm.node --nproc-per-node=4" in base
    assert "    actor.mesh=t2p2" in ppo


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


def fake_slurm(monkeypatch: pytest.MonkeyPatch, refused: str = "none") -> list[list[str]]:
    """Records what is asked of SLURM; `refused` is part of a script that sbatch does not take."""
    calls: list[list[str]] = []

    def answer(words: Any, **_: Any) -> Any:
        calls.append(list(words))
        if words[0] == "squeue":
            return SimpleNamespace(returncode=0, stdout="12\n" if len(calls) > 4 else "")
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
    with pytest.raises(ConfigError, match="jobs 12 of an earlier submission"):
        calls += [[""]]
        submit(file, *CPU)


def test_what_sbatch_refuses_takes_the_others_back(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = fake_slurm(monkeypatch, refused="3-ppo")
    with pytest.raises(ConfigError, match="3-ppo.sh: sbatch refused it: no such qos"):
        submit(file, *CPU)
    assert calls[-1] == ["scancel", "11", "12"]

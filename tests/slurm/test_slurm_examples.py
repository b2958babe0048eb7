"""The scripts in examples/slurm: they are shell, and what they start is valid."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from megarl.cli.main import RUNS
from megarl.config.load import load_config
from megarl.config.resources import wanted_world_size
from megarl.slurm.options import seconds_of

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted((ROOT / "examples/slurm").glob("*.sh"))
JOBS = [path for path in SCRIPTS if path.name != "env.sh"]


def option(text: str, name: str) -> str:
    (value,) = re.findall(rf"^#SBATCH --{name}=(\S+)$", text, re.MULTILINE)
    return str(value)


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_it_is_shell(path: Path) -> None:
    subprocess.run(["bash", "-n", str(path)], check=True)


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.name)
def test_what_it_starts_is_valid(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    text = path.read_text()
    (line,) = re.findall(r"^srun .*?[^\\]\n", text, re.MULTILINE | re.DOTALL)
    words = shlex.split(line.replace("\\\n", " "))
    _, command, config, *overrides = words[words.index("megarl.cli.main") :]
    assert command in RUNS
    loaded = load_config(config, overrides)
    ranks = int(next(word for word in words if "nproc" in word).partition("=")[2])
    assert ranks == int(option(text, "gpus-per-node"))
    assert wanted_world_size(loaded) == int(option(text, "nodes")) * ranks
    assert loaded.checkpoint.save_interval > 0, "a job that is requeued would start over"


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.name)
def test_it_saves_before_its_time_is_up(path: Path) -> None:
    text = path.read_text()
    name, _, ahead = option(text, "signal").partition("@")
    assert name == "USR1" and 60 <= int(ahead) < seconds_of(option(text, "time"))
    assert "#SBATCH --requeue\n" in text and "--ntasks-per-node=1\n" in text

"""What docs/slurm.md and docs/70b.md show is what their commands print."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pytest

from megarl.cli.main import main

ROOT = Path(__file__).parents[2]
SLURM, BIG = ((ROOT / "docs" / name).read_text() for name in ("slurm.md", "70b.md"))


def blocks(page: str, language: str = "") -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL)


def commands(block: str) -> list[list[str]]:
    """The words of each command after `megarl`."""
    lines = block.replace("\\\n", " ").splitlines()
    return [shlex.split(line)[1:] for line in lines if line.startswith("megarl ")]


@pytest.fixture(autouse=True)
def at_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def test_the_first_command_writes_that_script(capsys: pytest.CaptureFixture[str]) -> None:
    first = commands(blocks(SLURM)[0])[0]
    assert main([*first, "--dry-run"]) == 0
    path, _, text = capsys.readouterr().out.partition("\n")
    assert path == "# runs/ppo-llama3.1-70b/slurm/train.sh"
    text = text.replace(sys.executable, "/home/me/megarl/.venv/bin/python")
    text = text.replace(str(ROOT), "/home/me/megarl")
    assert text.rstrip() == blocks(SLURM, "bash")[0].rstrip()


def test_the_dry_run_says_what_the_page_says(capsys: pytest.CaptureFixture[str]) -> None:
    command, shown = blocks(BIG)[:2]
    assert main(commands(command)[0]) == 0
    head, _, table = capsys.readouterr().out.partition("\n\nrank ")
    assert head == shown.rstrip()
    assert len(table.splitlines()) == 129, "a line per rank"


def test_the_other_sizes_are_what_they_say(capsys: pytest.CaptureFixture[str]) -> None:
    rows = re.findall(r"^\| `(\S+)` \| (.*) \|$", BIG, re.MULTILINE)
    assert len(rows) == 3
    for name, cells in rows:
        nodes, mesh, replicas, *sizes = cells.split(" | ")
        count = re.findall(r"(\d+) x 8", nodes)[0]
        recipe = f"configs/recipes/{name}.yaml"
        assert main(["train", recipe, "--dry-run", "--ranks-per-node", "8"]) == 0
        text = capsys.readouterr().out
        assert f"{8 * int(count)} ranks" in text
        assert f"  actor     {mesh}" in text and f"  rollout   {replicas} " in text
        found = re.findall(r"([\d.]+) GB in an? \w+", text)
        found += re.findall(r"vLLM's ([\d.]+)", text) + re.findall(r"([\d.]+) GB of a GPU", text)
        assert sizes == found


def test_a_critic_of_the_actors_size_is_what_it_says(capsys: pytest.CaptureFixture[str]) -> None:
    """The sentence about it names the overrides and the figures."""
    (text,) = re.findall(r"- \*\*Critic from.*?(?=\n- \*\*)", BIG, re.DOTALL)
    overrides = [word for word in re.findall(r"`(\S+=\S+)`", text)]
    recipe = "configs/recipes/ppo-llama3.1-70b-16n8g.yaml"
    path = "critic.model.path=configs/recipes/models/llama-3.1-70b"
    assert main(["train", recipe, "--dry-run", path, *overrides]) == 0
    said = re.findall(r"([\d.]+) GB (?=in a|of a GPU)", capsys.readouterr().out)
    assert re.findall(r"([\d.]+) GB", text) == said


def test_the_script_by_hand_is_the_same() -> None:
    """examples/slurm/ppo_70b.sh and the page's last command."""
    (start,) = [words for block in blocks(BIG) for words in commands(block) if words[0] == "submit"]
    script = (ROOT / "examples/slurm/ppo_70b.sh").read_text()
    (line,) = re.findall(r"^srun .*?[^\\]\n", script, re.MULTILINE | re.DOTALL)
    words = shlex.split(line.replace("\\\n", " "))
    overrides = [word for word in start if re.match(r"[\w.]+=", word)]
    assert words[words.index("train") :] == ["train", start[1], *overrides]
    asked = dict(zip(start, start[1:], strict=False))
    for option in (
        f"--nodes={asked['--nodes']}",
        f"--gpus-per-node={asked['--gpus-per-node']}",
        f"--signal=USR1@{asked['--save-seconds']}",
    ):
        assert f"#SBATCH {option}\n" in script
    assert f"source {asked['--env-file']} || " in script

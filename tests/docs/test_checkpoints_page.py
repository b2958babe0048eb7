"""What docs/checkpoints.md shows is what its commands print."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file
from tiny_folder import write_jsonl
from tiny_models import TinyModels

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "checkpoints.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.slow
def test_commands_print_what_the_page_says(tiny: TinyModels, tmp_path: Path) -> None:
    shutil.copytree(tiny("llama"), tmp_path / "model")
    write_jsonl(tmp_path / "answers.jsonl", prompt="w2 w3", response="w4 w5")
    (tmp_path / "run.yaml").write_text(blocks("yaml")[0])
    megarl = f'megarl() {{ {sys.executable} -m megarl.cli.main "$@"; }}'
    count = 0
    for part in "".join(blocks("console")).removeprefix("$ ").split("\n$ "):
        command, _, shown = part.partition("\n")
        done = subprocess.run(
            ["bash", "-c", f"{megarl}; {command}"], cwd=tmp_path, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, timeout=300, env=os.environ | {"COLUMNS": "80"},
        )  # fmt: skip
        said = [line for line in done.stdout.splitlines() if not line.startswith("megatron-to-hf")]
        assert said == shown.splitlines(), command
        assert done.returncode == (2 if "megarl: error" in shown else 0)
        count += 1
    assert count == 11
    folders = tmp_path / "weights", tmp_path / "runs/sft/model"
    one, other = (load_file(folder / "model.safetensors") for folder in folders)
    assert one.keys() == other.keys() and all(one[n].equal(other[n]) for n in one)


def test_every_setting_is_on_the_page() -> None:
    from megarl.config.docs import settings

    names = [one.key for one in settings() if one.key.startswith("checkpoint.")]
    assert len(names) == 7
    for name in names:
        assert f"| `{name.removeprefix('checkpoint.')}` |" in PAGE, name

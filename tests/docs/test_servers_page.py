"""docs/servers.md: its settings are accepted, its metrics exist, its commands are vLLM's."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import yaml
from refusing import check

from megarl.config.docs import settings
from megarl.rollout.vllm_arguments import known_arguments

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "servers.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def overrides(block: str) -> list[str]:
    """A block of YAML as overrides."""
    found = []

    def walk(prefix: str, value: object) -> None:
        if isinstance(value, dict):
            for name, below in value.items():
                walk(f"{prefix}.{name}" if prefix else name, below)
        else:
            found.append(f"{prefix}={yaml.safe_dump(value, default_flow_style=True).strip()}")

    walk("", yaml.safe_load(block))
    return [one.removesuffix("...").strip() for one in found]


@pytest.mark.parametrize("block", blocks("yaml"))
def test_settings_are_accepted(block: str, made: Path, tmp_path: Path) -> None:
    (tmp_path / "servers.txt").write_text("http://127.0.0.1:8000\n")
    given = [
        one.replace("/shared/servers.txt", str(tmp_path / "servers.txt"))
        for one in overrides(block)
        if "tensor_parallel_size: 8" not in block or "tensor_parallel_size" not in one
    ]
    assert check(made, *given).rollout_ranks == ()


def test_names_are_settings() -> None:
    keys = {setting.key for setting in settings()}
    for name in re.findall(r"`((?:rollout|algorithm)\.[a-z_.]+)`", PAGE):
        assert name in keys or any(key.startswith(name + ".") for key in keys), name


def test_metrics_are_written_somewhere() -> None:
    sources = "".join(path.read_text() for path in (ROOT / "megarl").rglob("*.py"))
    for line in re.findall(r"^\| (`(?:async|rollout)/.*?) \|", PAGE, re.MULTILINE):
        for name in re.findall(r"`((?:async|rollout)/[a-z_]+)", line):
            assert f'"{name}' in sources, name


def test_commands_are_vllms() -> None:
    known = known_arguments(server=True)
    served = [block for block in blocks("bash") if "vllm serve" in block]
    assert len(served) == 2
    for block in served:
        command = block[block.index("vllm serve") :].replace("\\\n", " ").split("& server")[0]
        flags = [word[2:] for word in shlex.split(command) if word.startswith("--")]
        assert "middleware" in flags and "weight-transfer-config" in flags
        for flag in flags:
            assert flag.replace("-", "_") in known, flag


def test_the_image_has_what_it_copies() -> None:
    text = (ROOT / "examples/container/Containerfile").read_text()
    for line in re.findall(r"^COPY (.*)$", text, re.MULTILINE):
        for name in line.split()[:-1]:
            assert (ROOT / name).exists(), name
    (target,) = re.findall(r"make (\w+) SET=gpu", text)
    assert f"\n{target}:" in (ROOT / "Makefile").read_text()

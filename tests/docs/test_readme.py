"""What the README shows runs as it stands there."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from tiny_models import TinyModels

from megarl.config.load import load_config

README = Path(__file__).parent.parent.parent / "README.md"


def blocks(language: str) -> list[str]:
    """The README's code blocks of a language, in order."""
    return re.findall(rf"```{language}\n(.*?)```", README.read_text(), re.DOTALL)


def test_the_config_has_known_keys_only(tmp_path: Path) -> None:
    (text,) = blocks("yaml")
    (tmp_path / "run.yaml").write_text(text)
    config = load_config(tmp_path / "run.yaml", [])
    assert config.data.rollout_batch_size == yaml.safe_load(text)["data"]["rollout_batch_size"]


def test_links_lead_somewhere() -> None:
    targets = re.findall(r"\]\(([^)#]+)", README.read_text())
    assert len(targets) > 4
    for target in targets:
        assert (README.parent / target).exists(), target


@pytest.mark.slow
def test_python_examples_run_in_one_process(tiny: TinyModels, tmp_path: Path) -> None:
    (tmp_path / "model").symlink_to(tiny("llama"))
    code = "\n".join(blocks("python"))
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "model-after" / "model.safetensors").exists()
    assert list((tmp_path / "logs").glob("events.out.tfevents.*"))

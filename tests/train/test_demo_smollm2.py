"""One step of the SmolLM2 demo: the same stages and code, from the GGUF to the exported model.

Not shown: that accuracy rises, which takes the whole demo.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]


def test_one_step(tmp_path: Path) -> None:
    options = ["--steps", "1", "--wanted-points", "-100"]
    command = [sys.executable, "-m", "examples.demo_smollm2", "--dir", str(tmp_path), *options]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    summary = json.loads((tmp_path / "train" / "summary.json").read_text())
    assert summary["reshard_bytes_received"] == summary["reshard_bytes_lower_bound"] > 0
    assert 0.1 < summary["accuracy_first"] < 0.6
    assert (tmp_path / "train" / "curves.png").stat().st_size > 0
    assert "transformers, same answers" in done.stdout

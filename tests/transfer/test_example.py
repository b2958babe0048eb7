"""The package's example runs as it stands in its README: a stock server, and a trainer."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from cluster import ROOT, free_port, process_env
from tiny_models import TinyModels
from vllm_server import VllmServer

pytestmark = [pytest.mark.dist, pytest.mark.vllm, pytest.mark.slow]
README = ROOT / "megarl" / "transfer" / "README.md"
ON_THIS_MACHINE = "--dtype float32 --max-model-len 128 --kv-cache-memory-bytes 16777216"


def block(language: str) -> str:
    """The README's one code block of a language."""
    (text,) = re.findall(rf"```{language}\n(.*?)```", README.read_text(), re.DOTALL)
    return str(text)


def test_the_example_runs(tiny: TinyModels, tmp_path: Path) -> None:
    (tmp_path / "model").symlink_to(tiny("llama"))
    port, log = str(free_port()), tmp_path / "server.log"
    command = block("bash").strip().replace("8000", port).replace(" python ", f" {sys.executable} ")
    env = process_env() | {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_NO_USAGE_STATS": "1"}
    with log.open("w") as out:
        process = subprocess.Popen(
            ["bash", "-c", f"{command} {ON_THIS_MACHINE} --enforce-eager"],
            cwd=tmp_path,
            env=env,
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    server = VllmServer(f"http://127.0.0.1:{port}", process.pid, log)
    try:
        server.wait_until_ready()
        done = subprocess.run(
            [sys.executable, "-c", block("python").replace("8000", port)],
            cwd=tmp_path,
            env=env,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr[-3000:] + server.tail()
        assert server.version == "2" and not server.is_paused
    finally:
        server.end()
        process.wait()

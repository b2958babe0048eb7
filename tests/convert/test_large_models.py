"""What only shows on models that are large against a chunk: processes, kills, memory."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from big_model import LAYER_BYTES, write_big
from safetensors.torch import load_file

from megarl.cli.main import main

pytestmark = pytest.mark.slow

MEASURED = """
import re, sys
from megarl.convert import chunk_job, block_job, commands, hf_to_megatron, megatron_to_hf

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024

before = peak()
assert commands.main(sys.argv[1], sys.argv[2:]) == 0
print("grew", peak() - before)
"""


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """About 0.2 GB in four files."""
    return write_big(tmp_path_factory.mktemp("big") / "model", 6, 60_000_000)


def same_folders(found: Path, expected: Path) -> bool:
    """Whether two folders hold the same bytes of the same tensors, in whatever files."""
    ours, theirs = (
        {k: v for file in folder.glob("*.safetensors") for k, v in load_file(file).items()}
        for folder in (found, expected)
    )
    return ours.keys() == theirs.keys() and all(
        torch.equal(value.view(torch.uint8), theirs[name].view(torch.uint8))
        for name, value in ours.items()
    )


def test_a_round_trip_on_two_processes(big: Path, tmp_path: Path) -> None:
    there, back = tmp_path / "there", tmp_path / "back"
    assert main(["convert", "hf-to-megatron", str(big), str(there), "--workers", "2"]) == 0
    assert len(list(there.glob("release/__[01]_0.distcp"))) == 2
    shard = ("--max-shard-gb", "0.1")
    assert main(["convert", "megatron-to-hf", str(there), str(back), "--workers", "2", *shard]) == 0
    assert len(list(back.glob("*.safetensors"))) > 2
    assert same_folders(back, big)


def test_a_kill_leaves_nothing_that_looks_finished(big: Path, tmp_path: Path) -> None:
    """kill -9 while two processes write; they end too, and the next run starts clean."""
    target, partial = tmp_path / "out", tmp_path / "out.partial"
    command = [sys.executable, "-m", "megarl.cli.main", "convert", "hf-to-megatron"]
    running = subprocess.Popen(
        [*command, str(big), str(target), "--workers", "2"], stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 60
    while not list(partial.glob("release/*.distcp")) and time.monotonic() < deadline:
        time.sleep(0.002)
    children = Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split()
    running.send_signal(signal.SIGKILL)
    assert running.wait() == -signal.SIGKILL
    assert not target.exists() and partial.exists()
    while any(Path(f"/proc/{pid}").exists() for pid in children):
        assert time.monotonic() < deadline, "a worker outlived the process that started it"
        time.sleep(0.05)
    assert main(["convert", "hf-to-megatron", str(big), str(target), "--workers", "1"]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_a_killed_worker_is_named(big: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "megarl.cli.main", "convert", "hf-to-megatron"]
    running = subprocess.Popen(
        [*command, str(big), str(tmp_path / "out"), "--workers", "2"],
        stderr=subprocess.PIPE,
        text=True,
    )
    release = tmp_path / "out.partial" / "release"
    deadline = time.monotonic() + 60
    while not release.exists() and time.monotonic() < deadline:
        time.sleep(0.002)
    children: list[str] = []
    while not children and time.monotonic() < deadline:
        for pid in Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split():
            if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes():
                children.append(pid)
    os.kill(int(children[0]), signal.SIGKILL)
    _, errors = running.communicate(timeout=60)
    assert running.returncode == 1
    assert "ended with status -9 and without a word" in errors
    assert not list(tmp_path.iterdir())


def test_memory_does_not_grow_with_the_model(tmp_path: Path) -> None:
    """At most two files' worth (0.5 GB) on 1.6 GB, and as much as on a third of it."""
    grew: dict[tuple[str, int], int] = {}
    for num_layers in (16, 48):
        model = write_big(tmp_path / f"model{num_layers}", num_layers)
        there, back = tmp_path / f"there{num_layers}", tmp_path / f"back{num_layers}"
        for direction, source, target in (
            ("hf-to-megatron", model, there),
            ("megatron-to-hf", there, back),
        ):
            options = ["--workers", "1"]
            if direction == "megatron-to-hf":
                options += ["--max-shard-gb", "0.25"]
            done = subprocess.run(
                [sys.executable, "-c", MEASURED, direction, str(source), str(target), *options],
                capture_output=True,
                text=True,
                timeout=300,
            )
            assert done.returncode == 0, done.stderr
            grew[direction, num_layers] = int(done.stdout.split("grew")[1])
        assert sum(f.stat().st_size for f in there.rglob("*")) > LAYER_BYTES * num_layers
    for direction in ("hf-to-megatron", "megatron-to-hf"):
        assert grew[direction, 48] < 2 * 250_000_000, grew
        assert grew[direction, 48] < 1.2 * grew[direction, 16] + 20_000_000, grew

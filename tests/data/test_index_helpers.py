"""Megatron-Core's C++ helpers: in the wheel, and compiled where they are not."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from megarl.data.index_helpers import compile_helpers, ensure_helpers
from megarl.errors import ConfigError

COMPILE = (
    "import sys; from pathlib import Path; from megarl.data.index_helpers import compile_helpers;"
    "compile_helpers(Path(sys.argv[1]))"
)
USE = """
import sys
import numpy
sys.path.insert(0, sys.argv[1])
import helpers_cpp
print(helpers_cpp.build_sample_idx_int32(
    numpy.array([3, 4, 5], dtype=numpy.int32), numpy.array([2, 0, 1], dtype=numpy.int32),
    4, 1, 12, True, 1).tolist())
"""


def sources(folder: Path) -> Path:
    import megatron.core.datasets

    shutil.copy(Path(megatron.core.datasets.__path__[0]) / "helpers.cpp", folder)
    return folder


def test_the_wheel_has_them() -> None:
    ensure_helpers()
    from megatron.core.datasets import helpers_cpp

    assert helpers_cpp.build_sample_idx_int32


@pytest.mark.slow
def test_four_processes_compile_at_once(tmp_path: Path) -> None:
    """All succeed, one file is left, and it works."""
    folder = sources(tmp_path)
    running = [
        subprocess.Popen([sys.executable, "-c", COMPILE, str(folder)], stderr=subprocess.PIPE)
        for _ in range(4)
    ]
    errors = [process.communicate(timeout=500)[1] for process in running]
    assert [process.returncode for process in running] == [0] * 4, errors
    assert len(list(folder.iterdir())) == 2
    used = subprocess.run(
        [sys.executable, "-c", USE, str(folder)], capture_output=True, text=True, check=True
    )
    assert used.stdout.strip() == "[[0, 0], [0, 4], [2, 0]]"


def test_no_compiler_and_no_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="helpers are not compiled.*install a wheel"):
        compile_helpers(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="No such file.*'g\\+\\+'.*install a wheel"):
        compile_helpers(sources(tmp_path))
    assert [file.name for file in tmp_path.iterdir()] == ["helpers.cpp"]

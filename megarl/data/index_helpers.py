"""Megatron-Core's C++ helpers that build indices: found, or compiled where they are not there."""

from __future__ import annotations

import importlib
import os
import subprocess
import sysconfig
from pathlib import Path

import torch

from megarl.errors import ConfigError

MODULE = "megatron.core.datasets.helpers_cpp"


def ensure_helpers() -> None:
    """Import the helpers, which wheels bring along; compile them first for a source checkout.

    Processes may do so at the same time: each compiles into a file of its own, which then takes
    the name in one step. ConfigError where there is no compiler or the folder cannot be written.
    """
    try:
        importlib.import_module(MODULE)
        return
    except ImportError:
        import megatron.core.datasets

        compile_helpers(Path(megatron.core.datasets.__path__[0]))
    importlib.invalidate_caches()
    importlib.import_module(MODULE)


def compile_helpers(folder: Path) -> None:
    """Compile `helpers.cpp` in `folder` as Megatron-LM's Makefile does (which wheels lack)."""
    source = folder / "helpers.cpp"
    target = folder / f"helpers_cpp{sysconfig.get_config_var('EXT_SUFFIX')}"
    partial = folder / f".{target.name}.{os.getpid()}.partial"
    includes = [
        sysconfig.get_path("include"),
        str(Path(torch.__file__).parent / "include"),  # pybind11's headers come with torch
    ]
    command = ["g++", "-O3", "-Wall", "-shared", "-std=c++17", "-fPIC"]
    command += [f"-I{path}" for path in includes] + [str(source), "-o", str(partial)]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
        cause = " ".join(done.stderr.split())[-500:] if done.returncode else ""
    except OSError as error:
        cause = str(error)
    if cause:
        partial.unlink(missing_ok=True)
        raise ConfigError(
            f"Megatron-Core's index helpers are not compiled, and compiling {source} failed: "
            f"{cause}; install a wheel of megatron-core, or g++ and Python's headers"
        )
    os.replace(partial, target)

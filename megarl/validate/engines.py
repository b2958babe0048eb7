"""Rollout engine, and the machine that a run is on: can they do what is asked?"""

from __future__ import annotations

import difflib
import importlib.util
from pathlib import Path

from megarl import native
from megarl.config.schema import Config
from megarl.errors import ConfigError
from megarl.mesh.run_plan import RunPlan
from megarl.rollout.vllm_arguments import SET_FOR_SERVERS, SET_HERE, known_arguments
from megarl.runtime.device import on_cuda

CPU_HEAD_MULTIPLE = 32
"""vLLM's attention on CPU takes head sizes that are multiples of this."""


def check_engine(config: Config) -> None:
    """ConfigError where the rollout engine cannot do what is asked, on any machine."""
    rollout = config.rollout
    if rollout.enable_sleep_mode and rollout.engine != "vllm":
        raise ConfigError(
            f"rollout.enable_sleep_mode is true and rollout.engine is {rollout.engine}: only vLLM "
            "on GPUs has a sleep mode; set it to false"
        )
    taken = {"vllm": SET_HERE, "server": SET_FOR_SERVERS}.get(rollout.engine, frozenset())
    for name in sorted(map(str, rollout.engine_args)):
        if name in taken:
            raise ConfigError(
                f"rollout.engine_args.{name}: MegaRL sets this argument of vLLM itself, from the "
                "run's settings or as the weight sync needs it; leave it out"
            )
    for name in ("tensor_parallel_size", "pipeline_parallel_size"):
        if rollout.engine == "transformers" and getattr(rollout, name) != 1:
            raise ConfigError(
                f"rollout.{name} is {getattr(rollout, name)}: the transformers engine has one rank "
                "per replica; set it to 1, or take vllm"
            )


def check_script(config: Config) -> None:
    """ConfigError where the scripted engine has no script, or is asked for log-probs."""
    if config.rollout.engine != "scripted":
        return
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


def check_machine(config: Config, plan: RunPlan, purpose: str) -> None:
    """ConfigError for what this machine, and what is installed here, cannot do."""
    check_device()
    _check_layers(config, plan, purpose)
    if purpose in ("train", "eval"):
        _check_engine_here(config, plan)
    if config.weight_sync.alias and purpose == "train" and on_cuda():
        if not config.rollout.enforce_eager:
            raise ConfigError(
                "weight_sync.alias is true and rollout.enforce_eager false: CUDA graphs would keep "
                "the memory that they were captured with; set one of them otherwise"
            )
    if config.observe.use_tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise ConfigError(
            "observe.use_tensorboard is true and tensorboard is not installed: pip install "
            "tensorboard, or set observe.use_tensorboard=false"
        )


def check_device() -> None:
    """ConfigError on a GPU where the part that moves its weights was not built."""
    if on_cuda() and not native.cuda_available():
        raise ConfigError(
            "this machine computes on CUDA, and megarl_cpp was built without its CUDA part, which "
            "moves the weights: install the CUDA toolkit (nvcc) and run `make build`, or run on "
            "the CPU, with the environment of `make venv SET=cpu`"
        )


def has_transformer_engine() -> bool:
    """Whether layers will be TransformerEngine's, as `models.layer_spec` chooses."""
    return on_cuda() and importlib.util.find_spec("transformer_engine") is not None


def _check_layers(config: Config, plan: RunPlan, purpose: str) -> None:
    for name, role in plan.roles.items():
        if role.layout.cp > 1:
            raise ConfigError(
                f"{name}.mesh.context_parallel_size is {role.layout.cp}: samples are not split "
                "over ranks yet; set it to 1, and take more tensor parallelism with "
                "sequence_parallel for long samples"
            )
    if config.algorithm.sequence_packing and purpose != "eval" and has_transformer_engine():
        raise ConfigError(
            "algorithm.sequence_packing is true and layers are TransformerEngine's, which would "
            "read the mask between samples otherwise: set it to false"
        )


def _check_engine_here(config: Config, plan: RunPlan) -> None:
    rollout, head_dim = config.rollout, plan.actor.shape.head_dim
    served = rollout.engine == "server"
    if rollout.engine != "vllm" and not (served and rollout.launch.replicas):
        return
    if importlib.util.find_spec("vllm") is None:
        raise ConfigError(
            f"rollout.engine is {rollout.engine} and vLLM is not installed: `make venv` installs "
            "the pinned one; or take rollout.engine=transformers, which is slow"
        )
    if not on_cuda() and head_dim % CPU_HEAD_MULTIPLE:
        raise ConfigError(
            f"rollout.engine is {rollout.engine}: vLLM's attention takes head sizes that are "
            f"multiples of {CPU_HEAD_MULTIPLE} where there is no CUDA, and the model has head_dim "
            f"{head_dim}: take another model, or rollout.engine=transformers"
        )
    if rollout.enable_sleep_mode and not on_cuda():
        raise ConfigError(
            "rollout.enable_sleep_mode is true and this machine computes on CPUs, where vLLM "
            "cannot sleep: set it to false"
        )
    known = known_arguments(server=served) if rollout.engine_args else frozenset()
    for name in sorted({str(name) for name in rollout.engine_args} - known if known else ()):
        close = difflib.get_close_matches(name, known, n=1)
        hint = f" (did you mean {close[0]}?)" if close else ""
        raise ConfigError(f"rollout.engine_args.{name}: vLLM has no such argument{hint}")

"""Which engine a run gets: the one place that knows them all; each is imported when it is asked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from megarl.errors import ConfigError
from megarl.layout import ModelShape, vllm_parameters
from megarl.rollout.engine import ResidentEngine
from megarl.rollout.local import Decode
from megarl.rollout.vllm_engine import VllmEngine, VllmSettings

ENGINES = ("vllm", "transformers", "scripted")


def build_engine(
    name: str, settings: VllmSettings, shape: ModelShape, index: int, decode: Decode
) -> ResidentEngine:
    """The engine called `name` on rank number `index` of the rollout.

    `settings.engine_args` are the engine's own: vLLM's arguments, or {"script": file}. Raises
    ConfigError for an unknown name, and for transformers on several ranks per replica.
    """
    if name == "vllm":
        return VllmEngine(settings, decode)
    dtype = getattr(torch, settings.dtype)
    length, seqs = settings.max_model_len, settings.max_num_seqs
    if name == "transformers":
        from megarl.rollout.transformers_engine import TransformersEngine

        if settings.replica.size != 1:
            raise ConfigError(
                f"rollout replicas of {settings.replica.size} ranks: the transformers engine has "
                "one rank per replica; set rollout.tensor_parallel_size to 1, or take vllm"
            )
        return TransformersEngine(settings.model, shape, dtype, decode, length, seqs)
    if name == "scripted":
        from megarl.rollout.scripted import ScriptedEngine, read_script

        shapes = vllm_parameters(shape, settings.replica.slice_of(index))
        parameters = {key: torch.zeros(size, dtype=dtype) for key, size in shapes.items()}
        script = read_script(_script_path(settings.engine_args))
        return ScriptedEngine(script, parameters, decode, length, seqs)
    raise ConfigError(f"rollout.engine is {name!r}; known: {', '.join(ENGINES)}")


def _script_path(engine_args: Mapping[str, Any]) -> str:
    if "script" not in engine_args:
        raise ConfigError("rollout.engine scripted needs rollout.engine_args.script, a jsonl file")
    return str(engine_args["script"])

"""Two habits of vLLM on a CPU that a trainer in the same process needs otherwise."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any

import torch


def keep_linear_weights(wanted: Callable[[], bool] | None = None) -> None:
    """vLLM packs linear weights for oneDNN and drops the parameter: keep it, to write into it.

    wanted: asked whenever a layer is packed; None keeps them in every model of this process.
    """
    from vllm.model_executor.layers import utils

    original = utils.dispatch_cpu_unquantized_gemm
    asked: set[Callable[[], bool] | None] = getattr(original, "asked", set())
    if wanted in asked:
        return

    def keep(layer: torch.nn.Module, remove_weight: bool = False) -> None:
        original(layer, remove_weight=remove_weight and wanted is not None and not wanted())

    setattr(keep, "asked", asked | {wanted})  # noqa: B010
    utils.dispatch_cpu_unquantized_gemm = keep


def map_experts() -> None:
    """vLLM's CPU experts take global expert numbers for their own: give them local ones.

    A token's experts on other ranks of the replica get weight 0 here; the ranks' outputs are summed
    by vLLM as under tensor parallelism.
    """
    from vllm.model_executor.layers.fused_moe.experts.cpu_moe import CPUUnquantizedExperts

    original = CPUUnquantizedExperts.apply
    if hasattr(original, "__wrapped__"):
        return
    signature = inspect.signature(original)

    @wraps(original)
    def apply(*args: Any, **kwargs: Any) -> None:
        call = signature.bind(*args, **kwargs)
        expert_map, ids = call.arguments["expert_map"], call.arguments["topk_ids"]
        if expert_map is not None:
            local = expert_map[ids.long()].to(ids.dtype)
            weights = call.arguments["topk_weights"]
            call.arguments["topk_weights"] = weights * (local >= 0)
            call.arguments["topk_ids"] = local.clamp(min=0)
        original(*call.args, **call.kwargs)

    CPUUnquantizedExperts.apply = apply

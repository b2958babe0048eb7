"""The weights of a vLLM model while it lives: opened for writing, closed again.

On a GPU parameters are what the model computes with. On a CPU vLLM packs linear layers and experts
when it is built, and computes with the packed copies: `open` gives back tensors in the layout of
its loaders, and `close` has vLLM pack them again.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from megarl.errors import ConfigError, VerificationError
from megarl.runtime.device import on_cuda

EXPERTS = ("w13_weight", "w2_weight")
AS_LOADED = ("TRITON", "BATCHED_TRITON")
"""vLLM's expert kernels for GPUs that compute with what its loaders wrote."""
_LIVE = torch.nn.functional.linear
"""What a layer that is not packed computes with: it reads the parameter itself."""


class LiveWeights:
    """A model's parameters; on a CPU it keeps a copy of the experts in the loaders' layout."""

    def __init__(self, model: torch.nn.Module) -> None:
        self._model = model
        if on_cuda():
            _check_expert_kernels(model)
        self._packed: dict[str, weakref.ref[Any]] = {}
        self._staged = {} if on_cuda() else {n: _stage(m) for n, m in _expert_layers(model)}

    def open(self) -> dict[str, Tensor]:
        """Parameter name -> the tensor to write into, in the layout of vLLM's loaders."""
        from vllm.model_executor.utils import replace_parameter

        self._packed = dict(_packed(self._model))
        modules = dict(self._model.named_modules())
        for name, staged in self._staged.items():
            for which, tensor in staged.items():
                replace_parameter(modules[name], which, tensor)
        return {name: parameter.data for name, parameter in self._model.named_parameters()}

    def alias(self, views: Mapping[str, Tensor]) -> frozenset[str]:
        """Make parameters views of other memory; on a CPU their layers are packed no more.

        Returns the names of those that are: experts are computed with in another layout there.
        """
        modules: list[Any] = [m for m in self._model.modules() if hasattr(m, "cpu_linear")]
        staged = {f"{name}.{which}" for name in self._staged for which in EXPERTS}
        taken = views.keys() - staged
        for name in taken:
            parameter = self._model.get_parameter(name)
            parameter.data = views[name]
            for module in modules:
                if module.weight is parameter:  # a tied head computes with the embedding's
                    module.cpu_linear = _LIVE
        return frozenset(taken)

    def close(self) -> None:
        """Pack what was packed; VerificationError for a layer that still has its old packing."""
        if not on_cuda():
            _pack_linear_layers(self._model)
        modules = dict(self._model.named_modules())
        left = [n for n, old in self._packed.items() if old() is modules[n].cpu_linear]
        for name, staged in self._staged.items():
            _pack_experts(modules[name])
            if modules[name].w13_weight.data_ptr() == staged["w13_weight"].data_ptr():
                left.append(name)
        if left:
            raise VerificationError(
                f"weight sync: vLLM still computes {left[0]} with the weights packed before it"
            )


def _packed(model: torch.nn.Module) -> Iterator[tuple[str, weakref.ref[Any]]]:
    """What each packed layer computes with: an object that holds a copy of its weights."""
    for name, module in model.named_modules():
        packed = getattr(module, "cpu_linear", None)
        if packed is not None and packed is not _LIVE:
            yield name, weakref.ref(packed)


def _pack_linear_layers(model: torch.nn.Module) -> None:
    from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm

    for module in model.modules():
        if getattr(module, "cpu_linear", _LIVE) is not _LIVE:
            dispatch_cpu_unquantized_gemm(module, remove_weight=False)


def _expert_layers(model: torch.nn.Module) -> Iterator[tuple[str, Any]]:
    for name, module in model.named_modules():
        if all(hasattr(module, which) for which in EXPERTS):
            yield name, module


def _check_expert_kernels(model: torch.nn.Module) -> None:
    for name, layer in _expert_layers(model):
        kernel = layer.quant_method.unquantized_backend.name
        if kernel not in AS_LOADED:
            raise ConfigError(
                f"rollout: vLLM re-packs {name} for its {kernel} kernel, but weights are written "
                "as its loaders lay them out: set rollout.engine_args.moe_backend=triton"
            )


def _stage(layer: Any) -> dict[str, Tensor]:
    """Tensors for an experts layer as it was before vLLM packed it."""
    config, live = layer.moe_config, layer.w13_weight
    experts, hidden = layer.local_num_experts, config.hidden_dim
    size = config.intermediate_size_per_partition
    shapes = (experts, 2 * size, hidden), (experts, hidden, size)
    return {
        which: torch.zeros(shape, dtype=live.dtype, device=live.device)
        for which, shape in zip(EXPERTS, shapes, strict=True)
    }


def _pack_experts(layer: Any) -> None:
    layer.quant_method.moe_kernel.fused_experts.process_weights_after_loading(layer)

"""Lets Megatron-Core run on a CPU over gloo: stand-ins for torch.cuda that only Megatron sees.

Every `megatron.*` module gets a proxy in place of its global name `torch`; modules that are
imported later get it as they load. vLLM, transformers and our own code keep the real torch.
`TABLE` lists each stand-in with the place in Megatron that needs it.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import sys
import types
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch

from megarl.errors import ConfigError


class _Stream:
    """A CUDA stream on a machine without one: everything is in order already."""

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def wait_stream(self, other: Any) -> None: ...

    def synchronize(self) -> None: ...

    def wait_event(self, event: Any) -> None: ...

    def record_event(self, event: Any = None) -> _Event:
        return _Event()


class _Event:
    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def record(self, stream: Any = None) -> None: ...

    def wait(self, stream: Any = None) -> None: ...

    def synchronize(self) -> None: ...


def _nothing(*args: Any, **kwargs: Any) -> None:
    return None


_STREAM = _Stream()

CUDA_TABLE: tuple[tuple[str, Any, str], ...] = (
    ("current_device", lambda: torch.device("cpu"), "device= of buffers, everywhere"),
    ("synchronize", _nothing, "p2p_communication, schedules"),
    ("empty_cache", _nothing, "distributed_data_parallel, optimizer"),
    ("get_rng_state", lambda *a, **k: torch.get_rng_state(), "tensor_parallel.random tracker"),
    ("set_rng_state", lambda state, *a, **k: torch.set_rng_state(state), "tensor_parallel.random"),
    ("manual_seed", lambda seed: torch.default_generator.manual_seed(seed), "rng tracker add()"),
    ("Stream", _Stream, "param_and_grad_buffer, distributed optimizer"),
    ("Event", _Event, "p2p overlap"),
    ("current_stream", lambda *a, **k: _STREAM, "schedules, param_and_grad_buffer"),
    ("default_stream", lambda *a, **k: _STREAM, "param_and_grad_buffer"),
    ("stream", lambda stream=None: nullcontext(), "param_and_grad_buffer"),
    ("is_current_stream_capturing", lambda: False, "cuda-graph checks"),
    ("is_available", lambda: False, "feature checks"),
)
"""(name in torch.cuda, stand-in, the place in Megatron that needs it)."""

FACTORIES = (
    "empty zeros ones full tensor arange rand randn randint empty_like zeros_like ones_like "
    "as_tensor linspace"
).split()
"""torch factories whose device="cuda" means cpu here, and whose pin_memory is dropped."""

MISSING = (("megatron.core.transformer.moe.moe_utils", "te_general_gemm", "router_gating_linear"),)
"""(module, name that stays undefined without TransformerEngine, the place that reads it)."""

_TYPE_NAMES = {
    "torch.FloatTensor": "torch.cuda.FloatTensor",
    "torch.HalfTensor": "torch.cuda.HalfTensor",
    "torch.BFloat16Tensor": "torch.cuda.BFloat16Tensor",
}
"""Tensor.type() strings as optimizer.py, distrib_optimizer.py and clip_grads.py compare them."""


def install() -> None:
    """Give every megatron module the stand-ins; a second call does nothing.

    Raises ConfigError where CUDA is there: Megatron needs no stand-in on such a machine.
    """
    if torch.cuda.is_available():
        raise ConfigError("the CPU stand-in for torch.cuda was asked for, but CUDA is available")
    if any(isinstance(finder, _MegatronFinder) for finder in sys.meta_path):
        return
    _patch_tensor_methods()
    for name, module in list(sys.modules.items()):
        if _is_megatron(name):
            _outfit(module)
    sys.meta_path.insert(0, _MegatronFinder())


def _is_megatron(name: str) -> bool:
    return name == "megatron" or name.startswith("megatron.")


def _cpu_factory(factory: Callable[..., Any]) -> Callable[..., Any]:
    def make(*args: Any, **kwargs: Any) -> Any:
        device = kwargs.get("device")
        if isinstance(device, str) and device.startswith("cuda"):
            kwargs["device"] = "cpu"
        kwargs.pop("pin_memory", None)
        return factory(*args, **kwargs)

    return make


class _Proxy(types.ModuleType):
    """A module that answers some names itself and passes the others on."""

    def __init__(self, real: types.ModuleType, overrides: dict[str, Any]) -> None:
        super().__init__(real.__name__)
        self.__dict__["_real"] = real
        self.__dict__.update(overrides)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_real"], name)


def _make_proxy() -> _Proxy:
    cuda = _Proxy(torch.cuda, {name: stand_in for name, stand_in, _ in CUDA_TABLE})
    factories = {name: _cpu_factory(getattr(torch, name)) for name in FACTORIES}
    distributed = _Proxy(
        torch.distributed,
        {
            "all_to_all_single": _all_to_all_single,
            "all_gather": _all_gather,
            "reduce_scatter": _reduce_scatter,
        },
    )
    return _Proxy(torch, {"cuda": cuda, "distributed": distributed, **factories})


def _all_to_all_single(output: Any, input: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: A002
    """Split sizes as lists: the token dispatcher brings them off the GPU itself, where one is."""
    plain = [_as_list(value) for value in args]
    named = {name: _as_list(value) for name, value in kwargs.items()}
    return torch.distributed.all_to_all_single(output, input, *plain, **named)


def _all_gather(parts: list[torch.Tensor], mine: torch.Tensor, group: Any = None) -> None:
    """Parts of unequal lengths too, as NCCL takes them and gloo does not."""
    longest = max(len(part) for part in parts)
    if all(len(part) == longest for part in parts):
        torch.distributed.all_gather(parts, mine, group=group)
        return
    padded = mine.new_zeros((longest, *mine.shape[1:]))
    padded[: len(mine)] = mine
    gathered = [torch.empty_like(padded) for _ in parts]
    torch.distributed.all_gather(gathered, padded, group=group)
    for part, whole in zip(parts, gathered, strict=True):
        part.copy_(whole[: len(part)])


def _reduce_scatter(mine: torch.Tensor, parts: list[torch.Tensor], group: Any = None) -> None:
    """The sum of each rank's part, on that rank; parts may differ in length."""
    total = torch.cat(parts)
    torch.distributed.all_reduce(total, group=group)
    mine.copy_(total.split([len(part) for part in parts])[torch.distributed.get_rank(group)])


def _as_list(value: Any) -> Any:
    return value.tolist() if isinstance(value, torch.Tensor) else value


_PROXY = _make_proxy()


def _outfit(module: types.ModuleType) -> None:
    if getattr(module, "torch", None) is torch:
        module.torch = _PROXY  # type: ignore[attr-defined]
    for where, name, _ in MISSING:
        if module.__name__ == where and not hasattr(module, name):
            setattr(module, name, None)
    if module.__name__ == "megatron.core.tensor_parallel.random":
        module._get_cuda_rng_state = lambda *a, **k: torch.get_rng_state()  # type: ignore[attr-defined]
        module._set_cuda_rng_state = lambda state, *a, **k: torch.set_rng_state(state)  # type: ignore[attr-defined]


def _called_from_megatron(depth: int = 2) -> bool:
    return _is_megatron(sys._getframe(depth).f_globals.get("__name__", ""))


def _patch_tensor_methods() -> None:
    """Tensor.cuda() and Tensor.type() answer differently when, and only when, Megatron calls."""
    real_cuda, real_type = torch.Tensor.cuda, torch.Tensor.type

    def cuda(self: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return self if _called_from_megatron() else real_cuda(self, *args, **kwargs)

    def type_(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        result = real_type(self, *args, **kwargs)
        if not args and not kwargs and _called_from_megatron():
            return _TYPE_NAMES.get(result, result)
        return result

    torch.Tensor.cuda = cuda  # type: ignore[method-assign,assignment]
    torch.Tensor.type = type_  # type: ignore[method-assign,assignment]


class _MegatronFinder(importlib.abc.MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if not _is_megatron(fullname):
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _OutfittingLoader(spec.loader)
        return spec


class _OutfittingLoader(importlib.abc.Loader):
    def __init__(self, inner: importlib.abc.Loader) -> None:
        self._inner = inner

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType | None:
        return self._inner.create_module(spec)

    def exec_module(self, module: types.ModuleType) -> None:
        self._inner.exec_module(module)
        _outfit(module)

    def __getattr__(self, name: str) -> Any:  # resource readers, get_source and the like
        return getattr(self._inner, name)

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
    return _Proxy(torch, {"cuda": cuda, **factories})


_PROXY = _make_proxy()


def _outfit(module: types.ModuleType) -> None:
    if getattr(module, "torch", None) is torch:
        module.torch = _PROXY  # type: ignore[attr-defined]
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

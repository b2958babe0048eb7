"""Where vLLM's own loaders put every Hugging Face tensor, found by letting them run on nothing.

`load_weights` gets tensors without memory; each copy into a parameter is noted instead of being
made. What comes out is the placement that vLLM itself believes in.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from megarl.layout import Box, Piece, Recording
from megarl.layout.box import contiguous_strides

_COPY = torch.ops.aten.copy_.default
_FILLS = (torch.ops.aten.fill_.Scalar, torch.ops.aten.fill_.Tensor, torch.ops.aten.zero_.default)
_ITEM = torch.ops.aten._local_scalar_dense.default


def record_loaders(model: torch.nn.Module, tensors: Mapping[str, tuple[int, ...]]) -> Recording:
    """This rank's pieces, by tensor in the order given; parameters are not touched.

    tensors: Hugging Face name -> full shape. A loader that does anything but copy boxes of its
    tensor is unrecordable, and none of the tensor's pieces are kept.
    """
    live = dict(model.named_parameters())
    owners = {p.untyped_storage().data_ptr(): name for name, p in live.items()}
    starts = {name: int(p.storage_offset()) for name, p in live.items()}
    loader: Any = model.load_weights
    pieces: list[Piece] = []
    unrecordable: dict[str, str] = {}
    for name, shape in tensors.items():
        recorder = _Recorder(shape, owners, starts)
        try:
            with recorder:
                loader([(name, recorder.source)])
        except _Unrecordable as error:
            unrecordable[name] = str(error)
        except Exception as error:  # whatever a loader makes of a tensor without memory
            unrecordable[name] = f"raises {type(error).__name__} without values: {error}"
        else:
            pieces += [
                Piece(name, box, buffer, offset, strides)
                for box, buffer, offset, strides in recorder.regions
            ]
    return Recording(tuple(pieces), unrecordable)


class _Unrecordable(Exception):
    """What a loader did, as in "computes before it copies"."""


class _Recorder(TorchDispatchMode):
    """Notes copies from one tensor without memory into parameters, and makes none."""

    def __init__(
        self,
        shape: tuple[int, ...],
        owners: Mapping[int, str],
        starts: Mapping[str, int],
    ) -> None:
        super().__init__()
        self.source = torch.empty(shape, device="meta", dtype=torch.float32)
        self.regions: list[tuple[Box, str, int, tuple[int, ...]]] = []
        self._shape = shape
        self._owners, self._starts = owners, starts

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if function is _COPY and not args[0].is_meta:
            self._note(args[0], args[1])
            return args[0]
        if function in _FILLS and self._owns(args[0]):
            return args[0]  # padding, which the trainer's tensor has rows for
        if function is _ITEM and args[0].is_meta:
            raise _Unrecordable("looks at the values")
        if function._schema.is_mutable and self._owns(args[0]):
            raise _Unrecordable("computes inside the parameter")
        return function(*args, **(kwargs or {}))

    def _owns(self, target: Any) -> bool:
        return not target.is_meta and target.untyped_storage().data_ptr() in self._owners

    def _note(self, target: Tensor, source: Tensor) -> None:
        if not source.is_meta or source.untyped_storage()._cdata != self._storage:
            raise _Unrecordable("computes before it copies")
        buffer = self._owners.get(target.untyped_storage().data_ptr())
        if buffer is None:
            raise _Unrecordable("writes to memory of no parameter")
        box = self._box_of(source)
        if box is None or tuple(target.shape) != tuple(source.shape):
            raise _Unrecordable("copies other than boxes")
        strides = tuple(target.stride())
        if len(strides) != len(self._shape):
            raise _Unrecordable("reshapes it")
        if box.numel:  # a rank may hold padding alone
            offset = int(target.storage_offset()) - self._starts[buffer]
            self.regions.append((box, buffer, offset, strides))

    @property
    def _storage(self) -> int:
        return int(self.source.untyped_storage()._cdata)

    def _box_of(self, view: Tensor) -> Box | None:
        """The box of the full tensor that a view of it shows; None for any other view."""
        full = contiguous_strides(self._shape)
        if view.dim() != len(full) or any(
            n > 1 and have != want
            for n, have, want in zip(view.shape, view.stride(), full, strict=True)
        ):
            return None
        lo, rest = [], view.storage_offset()
        for stride in full:
            lo.append(rest // stride)
            rest %= stride
        return Box(tuple(lo), tuple(a + n for a, n in zip(lo, view.shape, strict=True)))

"""Tensors that only the engine's own loaders can place: gathered whole, one after the other.

For loaders that compute, reshape, or look at values: the planner cannot say where such a tensor
goes. Every rank of the rollout receives all of it, in one buffer of the largest one's size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod

import torch
from torch import Tensor

from megarl import native
from megarl.layout import Placement, Plan, file_placement, hf_tensors
from megarl.layout.rules import ModelShape
from megarl.mesh.group import RankGroup
from megarl.reshard.executor import Resharder
from megarl.runtime.device import device

Load = Callable[[str, Tensor], None]
"""An engine's own loader of one full tensor, by its Hugging Face name."""


class IndirectLoads:
    """The tensors, their plans, and this rank's loader; `run` once in every sync."""

    def __init__(
        self,
        group: RankGroup,
        shape: ModelShape,
        tensors: Sequence[str],
        sources: Mapping[int, Placement],
        receivers: Sequence[int],
        live: Mapping[str, Tensor],
        load: Load | None,
        *,
        wire_dtype: torch.dtype,
        buffer_bytes: int,
    ) -> None:
        """sources: of the trainer, without padding of the vocabulary; live: its parameters here.

        receivers: ranks of the rollout; load: on those only.
        """
        self._group, self._live, self._load = group, live, load
        self._wire, self._buffer_bytes = wire_dtype, buffer_bytes
        self._shapes = {name: hf_tensors(shape)[name] for name in tensors}
        whole = {piece.tensor: (piece,) for piece in file_placement(shape)}
        self._plans: dict[str, Plan] = {
            name: native.plan(
                {rank: _only(name, placement) for rank, placement in sources.items()},
                dict.fromkeys(receivers, whole[name]),
                node_of=group.node_of.__getitem__,
                rank=group.rank,
            )
            for name in tensors
        }

    def run(self, verify: bool) -> int:
        """Gather and load every tensor; returns the bytes that this rank received for them.

        Raises what `Resharder.run` raises.
        """
        largest = max((prod(shape) for shape in self._shapes.values()), default=0)
        numel = largest if self._load else 0
        scratch = torch.empty(numel, dtype=self._wire, device=device())
        received = 0
        for name, plan in self._plans.items():
            shape = self._shapes[name]
            full = scratch[: prod(shape)].view(shape) if self._load else None
            received += (
                Resharder(
                    self._group,
                    plan,
                    self._live,
                    {} if full is None else {name: full},
                    wire_dtype=self._wire,
                    buffer_bytes=self._buffer_bytes,
                )
                .run(verify)
                .bytes_received
            )
            if self._load is not None and full is not None:
                self._load(name, full)
        return received


def without(placements: Mapping[int, Placement], tensors: Sequence[str]) -> dict[int, Placement]:
    """Placements less these tensors; ranks that shared a placement still do."""
    if not tensors:
        return dict(placements)
    left_out, known = frozenset(tensors), dict[int, Placement]()
    for placement in placements.values():
        if id(placement) not in known:
            known[id(placement)] = tuple(p for p in placement if p.tensor not in left_out)
    return {rank: known[id(placement)] for rank, placement in placements.items()}


def _only(name: str, placement: Placement) -> Placement:
    return tuple(piece for piece in placement if piece.tensor == name)

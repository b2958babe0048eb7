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
from megarl.errors import VerificationError
from megarl.layout import Placement, file_placement, hf_tensors
from megarl.layout.rules import ModelShape
from megarl.mesh.group import RankGroup
from megarl.reshard.executor import Resharder, RoundBuffers
from megarl.runtime.device import device

Load = Callable[[str, Tensor], None]
"""An engine's own loader of one full tensor, by its Hugging Face name."""


class IndirectLoads:
    """The tensors, an executor for each, and this rank's loader; `run` once in every sync."""

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
        buffer_bytes: int,
        buffers: RoundBuffers,
    ) -> None:
        """sources: of the trainer, without padding of the vocabulary; live: its parameters here.

        receivers: ranks of the rollout; load: on those only. buffers: the executor's of all other
        tensors, at most buffer_bytes. Raises what `Resharder` raises.
        """
        self._load = load
        shapes = {name: hf_tensors(shape)[name] for name in tensors}
        whole = {piece.tensor: (piece,) for piece in file_placement(shape)}
        largest = max(map(prod, shapes.values())) if load else 0
        scratch = torch.empty(largest, dtype=buffers.dtype, device=device())
        self._parts: list[tuple[str, Tensor, Resharder]] = []
        for name, size in shapes.items():
            full = scratch[: prod(size)].view(size) if load else scratch
            plan = native.plan(
                {rank: _only(name, placement) for rank, placement in sources.items()},
                dict.fromkeys(receivers, whole[name]),
                node_of=group.node_of.__getitem__,
                rank=group.rank,
            )
            resharder = Resharder(
                group,
                plan,
                live,
                {name: full} if load else {},
                wire_dtype=buffers.dtype,
                buffer_bytes=buffer_bytes,
                buffers=buffers,
            )
            self._parts.append((name, full, resharder))

    def run(self, verify: bool) -> int:
        """Gather and load every tensor; returns the bytes that this rank received for them.

        Raises VerificationError at the end, so that no rank waits for a message, and PeerError as
        `Resharder.run`.
        """
        received, problem = 0, None
        for name, full, resharder in self._parts:
            try:
                received += resharder.run(verify).bytes_received
            except VerificationError as error:
                problem = problem or error
                continue
            if self._load is not None:
                self._load(name, full)
        if problem is not None:
            raise problem
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

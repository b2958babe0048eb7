"""A placement: which boxes of which Hugging Face tensors lie where in a rank's buffers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from megarl.layout.box import Box


@dataclass(frozen=True, slots=True)
class Piece:
    """One box of a Hugging Face tensor, and the strided region of a local buffer that holds it."""

    tensor: str
    """Hugging Face name, such as "model.layers.3.self_attn.q_proj.weight"."""
    box: Box
    buffer: str
    """Local parameter name, in the words of whoever owns it (Megatron, vLLM, the file)."""
    offset: int
    """Elements, from the start of the contiguous local parameter."""
    strides: tuple[int, ...]
    """Elements, one per dim of the box."""

    def offset_of(self, box: Box) -> int:
        """Offset, in elements of the buffer, of the first element of a box inside this piece."""
        steps = zip(box.lo, self.box.lo, self.strides, strict=True)
        return self.offset + sum((lo - start) * stride for lo, start, stride in steps)


Placement = tuple[Piece, ...]
"""Everything that one rank holds; a tensor or box may occur in several buffers."""


@dataclass(frozen=True, slots=True)
class Recording:
    """What an engine's own loaders do with full tensors, on one rank."""

    placement: Placement
    unrecordable: Mapping[str, str]
    """Tensor -> what its loader does that is not copying boxes of it."""


def difference(one: Placement, other: Placement) -> Piece | None:
    """The first piece, by tensor, that only one of two placements has; None: they are the same.

    Strides along dims of one element say nothing, and are not compared.
    """
    ours, theirs = ({_key(piece): piece for piece in side} for side in (one, other))
    odd = [(ours | theirs)[key] for key in ours.keys() ^ theirs.keys()]
    return min(odd, key=lambda piece: (piece.tensor, piece.box, piece.buffer), default=None)


def _key(piece: Piece) -> tuple[object, ...]:
    strides = zip(piece.strides, piece.box.shape, strict=True)
    matter = tuple(stride for stride, size in strides if size > 1)
    return piece.tensor, piece.box, piece.buffer, piece.offset, matter

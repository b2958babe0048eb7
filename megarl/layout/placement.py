"""A placement: which boxes of which Hugging Face tensors lie where in a rank's buffers."""

from __future__ import annotations

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

"""Checkpoint files: whole tensors, contiguous, under their own names."""

from __future__ import annotations

from megarl.layout.box import contiguous_strides, whole
from megarl.layout.placement import Piece, Placement
from megarl.layout.rules import ModelShape, hf_tensors


def file_placement(shape: ModelShape) -> Placement:
    """Every Hugging Face tensor whole, in a buffer of the same name, without vocabulary padding."""
    return tuple(
        Piece(name, whole(dims), name, 0, contiguous_strides(dims))
        for name, dims in hf_tensors(shape).items()
    )

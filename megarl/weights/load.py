"""Fill a rank's Megatron parameters from a weight source, piece by piece."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from megarl.layout import Piece
from megarl.weights.source import WeightSource


def strided_view(parameter: Tensor, piece: Piece) -> Tensor:
    """The region of a parameter that holds a piece, as a tensor of the box's shape."""
    return parameter.detach().as_strided(
        piece.box.shape, piece.strides, parameter.storage_offset() + piece.offset
    )


@torch.no_grad()
def load_weights(
    source: WeightSource, placement: Iterable[Piece], parameters: Mapping[str, Tensor]
) -> None:
    """Write every piece of `placement` into `parameters`, casting to their type.

    What no piece covers (the vocabulary's padding) becomes 0.
    """
    for parameter in parameters.values():
        parameter.detach().zero_()
    for piece in placement:
        strided_view(parameters[piece.buffer], piece).copy_(source.read(piece.tensor, piece.box))

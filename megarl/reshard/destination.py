"""Is a live engine what the layout tables say, and which tensors can only its own loaders place?"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from megarl.errors import PlanError
from megarl.layout import ModelShape, Recording, VllmSlice, vllm_parameters, vllm_placement
from megarl.layout.placement import difference


def check_destination(
    shape: ModelShape,
    slice_: VllmSlice,
    live: Mapping[str, Tensor],
    recording: Recording | None,
) -> Mapping[str, str]:
    """Tensors whose loaders could not be recorded, with what they did; {} where all were.

    live: this rank's parameters by vLLM's names. recording: what the engine's own loaders do; None
    for an engine without any. Raises PlanError where names, shapes or places differ from the
    layout tables'.
    """
    expected = vllm_parameters(shape, slice_)
    found = {name: tuple(tensor.shape) for name, tensor in live.items()}
    if found != expected:
        odd = sorted(set(found.items()) ^ set(expected.items()))[0]
        raise PlanError(
            f"weight sync: vLLM's parameters are not what the layout tables say, first at "
            f"{odd[0]} {list(odd[1])}; this vLLM is not a known one"
        )
    if recording is None:
        return {}
    tables = vllm_placement(shape, slice_, padded_vocab=False)
    believed = tuple(piece for piece in tables if piece.tensor not in recording.unrecordable)
    piece = difference(recording.placement, believed)
    if piece is not None:
        who = "vLLM's own loader" if piece in recording.placement else "the layout table"
        raise PlanError(
            f"weight sync: {who} alone puts {piece.tensor} {piece.box} at element "
            f"{piece.offset} of {piece.buffer}; this vLLM is not a known one"
        )
    return recording.unrecordable

"""What must hold before the first byte moves: one plan on all ranks, and a vLLM that is known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from megarl.errors import PlanError
from megarl.layout import ModelShape, Recording, VllmSlice, vllm_parameters, vllm_placement
from megarl.layout.placement import difference

CASTABLE = {torch.float32, torch.bfloat16}
"""To each other, by megarl_cpp."""


def check_same_plan(digests: Sequence[str]) -> None:
    """digests: by rank. Raises PlanError, with all of them, where ranks made different plans."""
    if len(set(digests)) > 1:
        ranks = {one: [r for r, other in enumerate(digests) if other == one] for one in digests}
        found = "; ".join(f"ranks {who}: {digest}" for digest, who in ranks.items())
        raise PlanError(
            f"weight sync: ranks made different plans: {found}; start all of them with the same "
            "config, model and version of megarl"
        )


def check_destination(
    shape: ModelShape,
    slice_: VllmSlice,
    live: Mapping[str, Tensor],
    recording: Recording | None,
    wire_dtype: torch.dtype,
) -> Mapping[str, str]:
    """Tensors whose loaders could not be recorded, with what they did; {} where all were.

    live: this rank's parameters by vLLM's names. recording: what the engine's own loaders do; None
    for an engine without any. Raises PlanError where names, shapes or places differ from the
    layout tables', or a parameter's type is not one that the wire's can be cast to.
    """
    _check_shapes(vllm_parameters(shape, slice_), live)
    _check_types(live, wire_dtype)
    if recording is None:
        return {}
    tables = vllm_placement(shape, slice_, padded_vocab=False)
    believed = tuple(piece for piece in tables if piece.tensor not in recording.unrecordable)
    piece = difference(recording.placement, believed)
    if piece is not None:
        who = "vLLM's own loader" if piece in recording.placement else "the layout table"
        raise PlanError(
            f"weight sync: {who} alone puts {piece.tensor} {piece.box} at element "
            f"{piece.offset} of {piece.buffer}; install the vLLM that requirements/ pins"
        )
    return recording.unrecordable


def _check_types(live: Mapping[str, Tensor], wire_dtype: torch.dtype) -> None:
    castable = CASTABLE if wire_dtype in CASTABLE else {wire_dtype}
    for name, tensor in live.items():
        if tensor.dtype not in castable:
            raise PlanError(
                f"weight sync: vLLM holds {name} as {tensor.dtype}, and weights travel as "
                f"{wire_dtype}: only float32 and bfloat16 are cast to each other; start vLLM with "
                "the dtype of the trainer"
            )


def _check_shapes(expected: Mapping[str, tuple[int, ...]], live: Mapping[str, Tensor]) -> None:
    for name in sorted(expected.keys() | live.keys()):
        if name not in live:
            what = f"lacks {name}, which is {list(expected[name])} there"
        elif name not in expected:
            what = f"has {name} {list(live[name].shape)}, which they do not know"
        elif tuple(live[name].shape) != expected[name]:
            what = f"has {name} as {list(live[name].shape)}, and they as {list(expected[name])}"
        else:
            continue
        raise PlanError(
            f"weight sync: vLLM's model is not what the layout tables say: it {what}; install the "
            "vLLM that requirements/ pins, or look whether config.json is the model's own"
        )

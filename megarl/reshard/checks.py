"""What must hold before the first byte moves: one plan on all ranks, and a vLLM that is known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from megarl.errors import PlanError
from megarl.layout import ModelShape, Placement, vllm_parameters, vllm_placement
from megarl.layout.placement import difference
from megarl.layout.vllm_side import VllmSlice


def check_same_plan(digests: Sequence[str]) -> None:
    """digests: by rank. Raises PlanError, with all of them, where ranks made different plans."""
    if len(set(digests)) > 1:
        ranks = {one: [r for r, other in enumerate(digests) if other == one] for one in digests}
        found = "; ".join(f"ranks {who}: {digest}" for digest, who in ranks.items())
        raise PlanError(f"weight sync: ranks made different plans: {found}")


def check_parameters(shape: ModelShape, slice_: VllmSlice, live: Mapping[str, Tensor]) -> None:
    """vLLM's parameters must have the names and local shapes of the layout tables.

    Raises PlanError with the first that has not.
    """
    expected = vllm_parameters(shape, slice_)
    found = {name: tuple(tensor.shape) for name, tensor in live.items()}
    if found != expected:
        odd = sorted(set(found.items()) ^ set(expected.items()))[0]
        raise PlanError(
            f"weight sync: vLLM's parameters are not what the layout tables say, first at "
            f"{odd[0]} {list(odd[1])}; this vLLM is not a known one"
        )


def check_loaders(shape: ModelShape, slice_: VllmSlice, recorded: Placement | None) -> None:
    """vLLM's own loaders must put every tensor where the layout tables do.

    recorded: None for an engine without such loaders. Raises PlanError with the first piece that
    only one of the two knows.
    """
    if recorded is None:
        return
    piece = difference(recorded, vllm_placement(shape, slice_, padded_vocab=False))
    if piece is not None:
        who = "vLLM's own loader" if piece in recorded else "the layout table"
        raise PlanError(
            f"weight sync: {who} alone puts {piece.tensor} {piece.box} at element "
            f"{piece.offset} of {piece.buffer}; this vLLM is not a known one"
        )

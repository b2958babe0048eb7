"""Parameters of the rollout engine that are views of the trainer's: no copy, no second memory."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from torch import Tensor

from megarl.errors import VerificationError
from megarl.layout import Placement
from megarl.layout.alias import find_aliases


def views_for(
    held: Placement,
    needed: Placement,
    sources: Mapping[str, Tensor],
    destinations: Mapping[str, Tensor],
    left_out: Collection[str],
) -> dict[str, Tensor]:
    """Destination buffer -> the part of a source that is it: same bytes, type, device and shape.

    left_out: tensors that are loaded some other way; buffers with a part of one are not aliased.
    """
    filled_otherwise = {piece.buffer for piece in needed if piece.tensor in left_out}
    views = {}
    for name, alias in find_aliases(held, needed).items():
        source, target = sources[alias.buffer].detach(), destinations[name]
        same = (source.dtype, source.device) == (target.dtype, target.device)
        if same and alias.numel == target.numel() and name not in filled_otherwise:
            flat = source.view(-1)[alias.offset : alias.offset + alias.numel]
            views[name] = flat.view(target.shape)
    return views


def check_addresses(what: str, bound: Mapping[str, Tensor], live: Mapping[str, Tensor]) -> None:
    """VerificationError for a parameter that is not, or no more, where the plan was bound to it."""
    for name, tensor in bound.items():
        if name not in live or live[name].data_ptr() != tensor.data_ptr():
            raise VerificationError(
                f"weight sync: {what} replaced {name} since the plan was bound to its memory; "
                "parameters must be written in place"
            )

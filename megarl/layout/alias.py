"""Buffers that already are what another engine needs, byte for byte."""

from __future__ import annotations

from dataclasses import dataclass

from megarl.layout.placement import Placement


@dataclass(frozen=True, slots=True)
class Alias:
    """Where in a held buffer a needed buffer lies, without gaps."""

    buffer: str
    offset: int
    """Elements, from the start of the held buffer."""
    numel: int
    """Elements of the needed buffer."""


def find_aliases(held: Placement, needed: Placement) -> dict[str, Alias]:
    """Needed buffers that lie in one held buffer exactly as they are needed.

    A buffer counts whole or not at all: every piece of it must be a piece, or a part of one, of the
    same held buffer, at one and the same distance, with the same strides.
    """
    by_tensor: dict[str, list[int]] = {}
    for index, piece in enumerate(held):
        by_tensor.setdefault(piece.tensor, []).append(index)
    sizes: dict[str, int] = {}
    places: dict[str, set[tuple[str, int]]] = {}
    for piece in needed:
        sizes[piece.buffer] = sizes.get(piece.buffer, 0) + piece.box.numel
        found = {
            (source.buffer, source.offset_of(piece.box) - piece.offset)
            for source in (held[index] for index in by_tensor.get(piece.tensor, ()))
            if source.strides == piece.strides and source.box.contains(piece.box)
        }
        places[piece.buffer] = places.get(piece.buffer, found) & found
    return {
        buffer: Alias(*min(places[buffer]), numel)
        for buffer, numel in sizes.items()
        if places[buffer]
    }


def aliased_elements(held: Placement, needed: Placement) -> int:
    """Elements of all such buffers."""
    return sum(alias.numel for alias in find_aliases(held, needed).values())

"""Recording a model's own loaders: what they copy is found, what they do else is refused."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

import pytest
import torch
from torch import Tensor

from megarl.layout import Box, Piece
from megarl.layout.placement import difference
from megarl.rollout.vllm_record import record_loaders


class Model(torch.nn.Module):
    """One parameter, and a loader of the test's choice."""

    def __init__(self, load: Callable[[Tensor, Tensor], None]) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.full((6, 4), 7.0))
        self._load = load

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """As vLLM's models have it."""
        for _, tensor in weights:
            self._load(self.weight.data, tensor)


def second_shard(weight: Tensor, full: Tensor) -> None:
    """Rows 5 to 9 into rows 1 to 4, the last row is padding."""
    weight[1:5].copy_(full.narrow(0, 5, 4))
    weight[5:].fill_(0)


def test_a_shard_with_padding() -> None:
    model = Model(second_shard)
    found = record_loaders(model, {"full": (10, 4)})
    assert not found.unrecordable
    assert found.placement == (Piece("full", Box((5, 0), (9, 4)), "weight", 4, (4, 1)),)
    assert (model.weight == 7.0).all(), "nothing was written"


@pytest.mark.parametrize(
    ("load", "words"),
    [
        (lambda weight, full: weight.copy_(full * 2), "computes before it copies"),
        (lambda weight, full: weight.copy_(full.as_strided((6, 4), (1, 6))), "other than boxes"),
        (lambda weight, full: torch.empty(6, 4).copy_(full), "memory of no parameter"),
        (lambda weight, full: weight.fill_(full.sum().item()), "looks at the values"),
        (lambda weight, full: weight.copy_(full[:, :3]), "raises RuntimeError|other than boxes"),
        (lambda weight, full: weight.copy_(full).add_(1), "computes inside the parameter"),
        (lambda weight, full: weight.view(-1).copy_(full.view(-1)), "boxes|reshapes"),
    ],
)
def test_other_loaders_are_named(load: Callable[[Tensor, Tensor], None], words: str) -> None:
    model = Model(load)
    found = record_loaders(model, {"full": (6, 4)})
    assert not found.placement and list(found.unrecordable) == ["full"]
    assert re.search(words, found.unrecordable["full"])
    assert (model.weight == 7.0).all()


def test_what_differs_is_named() -> None:
    here = Piece("a", Box((0, 0), (1, 4)), "w", 0, (4, 1))
    same = Piece("a", Box((0, 0), (1, 4)), "w", 0, (9, 1))
    there = Piece("a", Box((0, 0), (1, 4)), "w", 4, (4, 1))
    assert difference((here,), (same,)) is None
    assert difference((here,), (there,)) in (here, there)
    assert difference((here,), ()) == here

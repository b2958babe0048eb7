"""Random generators go on where they stood."""

from __future__ import annotations

import io
import random

import numpy as np
import torch

from megarl.runtime.generators import generator_states, seed_generators, set_generator_states


def draws() -> list[float]:
    """Of each generator; an odd number of normal ones, of which the makers keep the other."""
    numbers = [random.random(), random.gauss(0, 1), float(np.random.rand()), np.random.randn()]
    return [*numbers, float(torch.rand(())), float(torch.randn(()))]


def test_what_is_drawn_after_a_file_was_written_is_drawn_again_from_it() -> None:
    seed_generators(7)
    first = draws()
    file = io.BytesIO()
    torch.save(generator_states(), file)
    after = [draws() for _ in range(3)]
    seed_generators(7)
    assert draws() == first != after[0]
    file.seek(0)
    set_generator_states(torch.load(file, weights_only=True))
    assert [draws() for _ in range(3)] == after

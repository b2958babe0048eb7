"""The random generators of a process: torch's, Python's and numpy's, for whoever draws from them.

MegaRL draws from generators of its own; these are for models with dropout and for users' functions.
"""

from __future__ import annotations

import random
from typing import Any, cast

import numpy as np
import torch

from megarl.runtime.device import on_cuda


def seed_generators(seed: int) -> None:
    """Begin all of them anew; seed: 0 to 2**32 - 1."""
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)
    if on_cuda():
        torch.cuda.manual_seed(seed)


def generator_states() -> dict[str, Any]:
    """Where all of them stand, of plain types and tensors alone."""
    name, keys, *rest = cast(tuple[Any, ...], np.random.get_state())
    states = {
        "torch": torch.get_rng_state(),
        "python": random.getstate(),
        "numpy": (name, torch.from_numpy(keys.astype(np.int64)), *rest),
    }
    return states | ({"cuda": torch.cuda.get_rng_state()} if on_cuda() else {})


def set_generator_states(states: dict[str, Any]) -> None:
    """Go on from there."""
    torch.set_rng_state(states["torch"])
    version, internal, gauss = states["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, *rest = states["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    if "cuda" in states and on_cuda():
        torch.cuda.set_rng_state(states["cuda"])

"""New weights: transformers' distribution, and the same values however they are cut."""

import torch

from megarl.layout.box import Box
from megarl.weights.source import FreshWeights

SHAPES = {
    "model.layers.0.mlp.down_proj.weight": (300, 170),
    "model.norm.weight": (300,),
    "model.layers.0.self_attn.q_proj.bias": (300,),
    "score.weight": (1, 300),
}
MATRIX = "model.layers.0.mlp.down_proj.weight"


def whole(name: str) -> Box:
    """All of a tensor."""
    return Box((0,) * len(SHAPES[name]), SHAPES[name])


def test_distribution() -> None:
    found = FreshWeights(SHAPES, seed=3, std=0.05).read(MATRIX, whole(MATRIX))
    assert found.shape == (300, 170) and found.dtype == torch.float32
    assert abs(float(found.std()) / 0.05 - 1) < 0.02 and abs(float(found.mean())) < 1e-3
    other = FreshWeights(SHAPES, seed=4, std=0.05).read(MATRIX, whole(MATRIX))
    assert abs(float(torch.corrcoef(torch.stack([found.ravel(), other.ravel()]))[0, 1])) < 0.02


def test_a_box_is_a_cut_of_the_whole() -> None:
    weights = FreshWeights(SHAPES, seed=3)
    found = weights.read(MATRIX, Box((37, 20), (211, 90)))
    assert torch.equal(found, weights.read(MATRIX, whole(MATRIX))[37:211, 20:90])


def test_norms_biases_and_heads() -> None:
    weights = FreshWeights(SHAPES, seed=3)
    for name, value in (("model.norm.weight", 1.0), ("score.weight", 0.0)):
        assert torch.equal(weights.read(name, whole(name)), torch.full(SHAPES[name], value))
    bias = "model.layers.0.self_attn.q_proj.bias"
    assert not weights.read(bias, whole(bias)).any()

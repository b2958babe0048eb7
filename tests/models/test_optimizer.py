"""A trained role's optimizer: fp32 main weights under bf16 ones, and the learning rate's schedules.

Proven: steps far below bf16's resolution add up, with and without the distributed optimizer, to the
same weights; every schedule follows its formula. Not shown: checkpoints of the optimizer.
"""

from __future__ import annotations

import math

import pytest
import torch
from cluster import Cluster
from jobs_optimizer import small_steps
from tiny_models import TinyModels

from megarl.config.schema import OptimizerConfig
from megarl.mesh.layout import MeshLayout

pytestmark = [pytest.mark.dist, pytest.mark.slow]
TINY_RATE = 2e-5


def test_steps_below_the_resolution_of_bf16_add_up(cluster: Cluster, tiny: TinyModels) -> None:
    """One step moves hardly a bf16 weight of size 0.1 (its spacing is 5e-4); forty steps do."""

    def changed(steps: int) -> float:
        config = OptimizerConfig(lr=TINY_RATE)
        arguments = (tiny("llama"), MeshLayout(), steps, config)
        before, after, _ = cluster.run(1, small_steps, *arguments)[0]
        name = "0/decoder.layers.1.mlp.linear_fc1.weight"
        large = before[name].abs() > 0.1
        assert large.sum() > 50
        return float((before[name] != after[name])[large].double().mean())

    once, often = changed(1), changed(40)
    assert once < 0.15 and often > 0.5


def test_the_distributed_optimizer_gives_the_same_bf16_weights(
    cluster: Cluster, tiny: TinyModels
) -> None:
    found = []
    for distributed in (False, True):
        config = OptimizerConfig(lr=1e-3, use_distributed_optimizer=distributed)
        arguments = (tiny("llama"), MeshLayout(dp=2), 3, config)
        found.append([after for _, after, _ in cluster.run(2, small_steps, *arguments)])
    for plain, sharded in zip(*found, strict=True):
        for name, expected in plain.items():
            assert torch.equal(sharded[name], expected), name


SCHEDULES = {
    "constant": lambda step: 1.0,
    "linear": lambda step: 1 - step / 8,
    "cosine": lambda step: (1 + math.cos(math.pi * step / 8)) / 2,
}


@pytest.mark.parametrize("style", [*SCHEDULES, "inverse-square-root"])
def test_the_rate_follows_its_schedule(style: str, cluster: Cluster, tiny: TinyModels) -> None:
    """Two steps of warm-up from 0, then eight to the lowest rate (and one that stays there)."""
    low, high = 1e-5, 1e-3
    config = OptimizerConfig(
        lr=high, min_lr=low, lr_warmup_steps=2, lr_decay_steps=10, lr_decay_style=style
    )
    _, _, rates = cluster.run(1, small_steps, tiny("llama"), MeshLayout(), 12, config)[0]
    for step, rate in enumerate(rates):
        if step < 2:
            expected = high * step / 2
        elif style == "inverse-square-root":
            # It has no end of its own, but the decay steps.
            expected = max(low, high * math.sqrt(2 / step)) if step <= 10 else low
        else:
            expected = low + (high - low) * SCHEDULES[style](min(step - 2, 8))
        assert math.isclose(rate, expected, rel_tol=1e-6, abs_tol=1e-12), f"{style} {step}"

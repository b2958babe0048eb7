"""Memory that leaves for the rollout phase: what is freed, and that training never notices.

Proven with Megatron's real optimizers on CPU. Not shown: pinned copies and a GPU's own memory.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from cluster import Cluster
from jobs_optimizer import away_after_a_save, buckets, offloaded_steps
from tiny_models import TinyModels

from megarl.config.schema import OptimizerConfig
from megarl.layout.memory import BUCKET_ELEMENTS, TrainedWith
from megarl.mesh.layout import MeshLayout
from megarl.models.offload import Offload

CASES = {
    "fp32": ("float32", False, 1),
    "fp32, distributed": ("float32", True, 2),
    "bf16": ("bfloat16", False, 1),
    "bf16, distributed": ("bfloat16", True, 2),
}


@pytest.mark.dist
@pytest.mark.parametrize("name", CASES)
def test_training_goes_on_bit_for_bit(name: str, cluster: Cluster, tiny: TinyModels) -> None:
    dtype, distributed, ranks = CASES[name]
    layout = MeshLayout(dp=ranks)
    found = {}
    for offload in (False, True):
        config = OptimizerConfig(
            lr=1e-3,
            use_distributed_optimizer=distributed,
            optimizer_offload=offload,
            grad_offload=offload,
        )
        found[offload] = cluster.run(
            ranks, offloaded_steps, tiny("llama"), layout, dtype, 3, config
        )
    for plain, away in zip(found[False], found[True], strict=True):
        assert plain.freed == [0] * 4 and not any(plain.left_empty)
        for key, expected in plain.tensors.items():
            assert torch.equal(away.tensors[key], expected), key
        # Adam's two states come with the first step; fp32 gradients are there from the start, and
        # fp32 main weights where the model is in bf16.
        share = plain.elements / (ranks if distributed else 1)
        mains = 4 * share if dtype == "bfloat16" else 0
        before, *after = away.freed
        assert before == pytest.approx(4 * plain.elements + mains, rel=0.02)
        assert after == pytest.approx([4 * plain.elements + mains + 8 * share] * 3, rel=0.02)
        assert away.left_empty == [True] * 4, "a tensor kept its memory"
        assert away.parameters_stay


@pytest.mark.dist
def test_a_checkpoint_leaves_gradients_away(
    cluster: Cluster, tiny: TinyModels, tmp_path: Path
) -> None:
    """They are not in it, and while it is written the rollout engine has their memory."""
    config = OptimizerConfig(lr=1e-3, optimizer_offload=True, grad_offload=True)
    folder = str(tmp_path / "saved")
    assert cluster.run(1, away_after_a_save, tiny("llama"), config, folder) == [(False, True)]


@pytest.mark.dist
@pytest.mark.parametrize(("family", "ep"), [("llama", 1), ("mixtral", 1), ("mixtral", 2)])
def test_the_memory_estimate_knows_megatrons_buckets(
    family: str, ep: int, cluster: Cluster, tiny: TinyModels
) -> None:
    """Cut in the first chunk of the first stage alone; experts' gradients are a buffer apart."""
    config = OptimizerConfig(use_distributed_optimizer=True, overlap_grad_reduce=True)
    layout = MeshLayout(pp=2, vpp=2, dp=2, ep=ep)
    how = TrainedWith(
        trained=True, dtype_bytes=2, data_ranks=2, expert_data_ranks=2 // ep,
        sequence_parallel=False, context_ranks=1, recompute=None, tokens=1,
        bucket_elements=BUCKET_ELEMENTS, gathers=True,
    )  # fmt: skip
    found = cluster.run(4, buckets, tiny(family), layout, config, how)
    for rank, facts in enumerate(found):
        assert facts.limits == [BUCKET_ELEMENTS if rank < 2 else None, None]
        own = 1 / 2 if ep == 1 else 1
        assert facts.by_formula == pytest.approx(4 * (2 + own) * facts.largest, rel=0.05)


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def test_memory_is_really_freed_and_views_stay_valid() -> None:
    buffer = torch.ones(32 << 20)
    view = buffer[100:200].view(10, 10)
    offload = Offload(lambda: [buffer, view])
    before = resident_bytes()
    assert offload.leave() == buffer.numel() * 4
    assert offload.leave() == 0
    # The host's copy was taken beside it: without freeing, twice the memory would be held.
    assert resident_bytes() < before + 20e6
    offload.come_back()
    assert view.eq(1).all() and buffer.shape == (32 << 20,)
    buffer[100:200] = torch.arange(100.0)
    assert view[3, 4] == 34


def test_every_bit_comes_back_at_the_same_view() -> None:
    """Also where two tensors share memory, and where states appear or grow later."""
    base = torch.randn(1000)
    tensors = [base[:300], base[500:].view(100, 5)]
    offload = Offload(lambda: tensors)
    for _ in range(3):
        expected = [tensor.clone() for tensor in tensors]
        assert offload.leave() == base.nbytes + sum(t.nbytes for t in tensors[2:])
        assert base.untyped_storage().nbytes() == 0
        offload.come_back()
        assert all(torch.equal(a, b) for a, b in zip(tensors, expected, strict=True))
        base.mul_(2)
        tensors.append(torch.randn(len(tensors) * 50))

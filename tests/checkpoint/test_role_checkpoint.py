"""A role's checkpoint: what goes on from it is what never stopped, bit for bit, on any layout."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import jobs_checkpoint as jobs
import pytest
import torch
from cluster import Cluster
from forked_runs import difference, role_contents
from tiny_models import TinyModels

from megarl.config.schema import OptimizerConfig
from megarl.mesh.layout import MeshLayout
from megarl.validate.models import read_hf_config

pytestmark = pytest.mark.dist
SAME = {
    "tp2pp2": ("llama-tied", MeshLayout(tp=2, pp=2), "float32", False),
    "tp2pp2-bf16": ("qwen3", MeshLayout(tp=2, pp=2), "bfloat16", False),
    "dp2-distributed": ("llama", MeshLayout(dp=2), "float32", True),
    "pp2vpp2": ("llama-tied", MeshLayout(pp=2, vpp=2), "float32", False),
    "ep2dp2-experts": ("qwen3-moe", MeshLayout(dp=2, ep=2), "float32", False),
    "pp2dp2-distributed-bf16": ("qwen2", MeshLayout(pp=2, dp=2), "bfloat16", True),
}


FAST = ("tp2pp2", "dp2-distributed")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n not in FAST)) for n in SAME]
)
def test_it_goes_on_bit_for_bit(
    name: str, cluster: Cluster, tiny: TinyModels, tmp_path: Path
) -> None:
    family, layout, dtype, distributed = SAME[name]
    path, folder = tiny(family), str(tmp_path / "saved")
    # Memory that is away while a checkpoint is written and read makes no difference.
    config = OptimizerConfig(lr=1e-3, use_distributed_optimizer=distributed, lr_decay_steps=9,
                             optimizer_offload=True, grad_offload=True,
                             lr_decay_style="linear")  # fmt: skip
    case = jobs.RoleCase(path, read_hf_config(path), layout, dtype, config, folder)
    whole = cluster.run(layout.size, jobs.train_and_save, case, 2, 3)[0]
    again = cluster.run(layout.size, jobs.load_and_train, case, 3)[0]
    for one, other in zip(whole, again, strict=True):
        assert jobs.equal(one, other)
    assert not jobs.equal(whole[0], whole[1])


def test_ranks_that_hold_the_same_share_the_writing(
    cluster: Cluster, tiny: TinyModels, tmp_path: Path
) -> None:
    case = simple_case(tiny, tmp_path / "saved", "llama", MeshLayout(dp=2))
    cluster.run(2, jobs.train_and_save, case, 1, 0)
    sizes = [
        sum(file.stat().st_size for file in (tmp_path / "saved").glob(f"__{rank}_*.distcp"))
        for rank in (0, 1)
    ]
    assert max(sizes) < 0.6 * sum(sizes)


@pytest.mark.slow
def test_another_layout_has_the_same_weights_and_goes_the_same_way(
    cluster: Cluster, tiny: TinyModels, tmp_path: Path
) -> None:
    """TP2 x PP2 -> TP1 x PP4 and TP2 x DP2; steps agree to rounding."""
    path, folder = tiny("llama"), str(tmp_path / "saved")
    hf, config = read_hf_config(path), OptimizerConfig(lr=1e-3)
    first = jobs.RoleCase(path, hf, MeshLayout(tp=2, pp=2), "float32", config, folder)
    whole = cluster.run(4, jobs.train_and_save, first, 2, 1)[0]
    for layout in (MeshLayout(pp=4), MeshLayout(tp=2, dp=2)):
        again = cluster.run(4, jobs.load_and_train, replace(first, layout=layout), 1)[0]
        assert jobs.equal(whole[0], again[0])
        for key, value in whole[1].items():
            torch.testing.assert_close(again[1][key], value, atol=2e-5, rtol=1e-4)


MOVES = {
    "tp2-pp2": (MeshLayout(tp=2), MeshLayout(pp=2), False),
    "dp2-tp2-distributed": (MeshLayout(dp=2), MeshLayout(tp=2), True),
    "tp2-dp2-distributed": (MeshLayout(tp=2), MeshLayout(dp=2), True),
    "tp2pp2-pp4": (MeshLayout(tp=2, pp=2), MeshLayout(pp=4), False),
    "tp2dp2-pp2dp2-distributed": (MeshLayout(tp=2, dp=2), MeshLayout(pp=2, dp=2), True),
    "pp2vpp2-tp2": (MeshLayout(pp=2, vpp=2), MeshLayout(tp=2), False),
}


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[pytest.mark.slow] * (n != "dp2-tp2-distributed")) for n in MOVES],
)
def test_adam_is_exact_on_another_layout(
    name: str, cluster: Cluster, tiny: TinyModels, tmp_path: Path
) -> None:
    """Saved, loaded elsewhere and saved again: every tensor, of weights and Adam's states."""
    before, after, distributed = MOVES[name]
    path, folders = tiny("llama"), [str(tmp_path / "one"), str(tmp_path / "other")]
    config = OptimizerConfig(lr=1e-3, use_distributed_optimizer=distributed)
    case = jobs.RoleCase(path, read_hf_config(path), before, "float32", config, folders[0])
    cluster.run(before.size, jobs.train_and_save, case, 2, 0)
    cluster.run(after.size, jobs.load_and_save, replace(case, layout=after), folders[1])
    one, other = (role_contents(Path(folder))["tensors"] for folder in folders)
    adam = [key for key in one if "exp_avg" in key]
    assert len(adam) >= 18 and all(one[key].any() for key in adam)
    assert difference(one, other) is None


def simple_case(tiny: TinyModels, folder: Path, family: str, layout: MeshLayout) -> jobs.RoleCase:
    """A role that is trained in fp32."""
    path = tiny(family)
    config = OptimizerConfig(lr=1e-3)
    return jobs.RoleCase(path, read_hf_config(path), layout, "float32", config, str(folder))


def test_training_does_not_change_what_is_being_written(
    cluster: Cluster, tiny: TinyModels, tmp_path: Path
) -> None:
    case = simple_case(tiny, tmp_path / "saved", "llama", MeshLayout(tp=2))
    before = cluster.run(2, jobs.train_on_while_it_is_written, case)[0]
    assert jobs.equal(before, cluster.run(2, jobs.load_and_train, case, 0)[0][0])


@pytest.mark.parametrize("part", ["__1_0.distcp", "common.pt", ".metadata"])
def test_a_spoilt_checkpoint_is_named(
    part: str, cluster: Cluster, tiny: TinyModels, tmp_path: Path
) -> None:
    """Cut short: all ranks say so, and none waits."""
    case = simple_case(tiny, tmp_path / "saved", "llama", MeshLayout(tp=2))
    cluster.run(2, jobs.train_and_save, case, 0, 0)
    file = tmp_path / "saved" / part
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    for text in cluster.run(2, jobs.refusal, case):
        assert text.startswith(f"DataError: checkpoint {tmp_path / 'saved'} cannot be read"), text


def test_a_full_disk_is_named_on_all_ranks(
    cluster: Cluster, tiny: TinyModels, tmp_path: Path
) -> None:
    case = simple_case(tiny, tmp_path / "saved", "llama", MeshLayout(tp=2))
    texts = cluster.run(2, jobs.failing_save, case)
    assert "No space left on device" in texts[0]
    assert "could not write its part" in texts[1]


@pytest.mark.slow
def test_optimizer_states_of_experts_stay_where_they_are(
    cluster: Cluster, tiny: TinyModels, tmp_path: Path
) -> None:
    case = simple_case(tiny, tmp_path / "saved", "qwen3-moe", MeshLayout(dp=2, ep=2))
    cluster.run(2, jobs.train_and_save, case, 1, 0)
    for text in cluster.run(2, jobs.refusal, replace(case, layout=MeshLayout(dp=2))):
        assert "saved with expert_model_parallel_size 2 and the mesh has 1" in text
        assert "megarl convert megatron-to-hf" in text

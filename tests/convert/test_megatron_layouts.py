"""Checkpoints that real Megatron-Core models load and save, on every small mesh.

Proven: what a conversion writes, Megatron-Core's own `dist_checkpointing.load` with the model's own
`sharded_state_dict` puts into the same bytes of every parameter as the Hugging Face files do, under
TP, PP, VPP, EP and expert TP; what Megatron-Core saves under them converts to the Hugging Face
files' bytes, also where it stores layers or experts as tensors of their own; and the keys are those
of GPTModel, as committed in keys.json. Not proven here: TransformerEngine's layers.
"""

from __future__ import annotations

import json
from pathlib import Path

import jobs_convert
import pytest
import torch
from cluster import Cluster
from safetensors.torch import load_file
from tiny_models import DENSE, FAMILIES, WITH_EXPERTS, TinyModels

from megarl.convert.hf_to_megatron import hf_to_megatron
from megarl.convert.megatron_to_hf import megatron_to_hf
from megarl.convert.stored import LOCAL_NORM_OF_EXPERTS, NORM_OF_EXPERTS, entries, objects
from megarl.layout import model_shape_from_hf
from megarl.mesh.layout import MeshLayout

pytestmark = pytest.mark.dist
KEYS = Path(__file__).parent / "keys.json"
MODELS = (*DENSE, "qwen2-reward")
LAYOUTS = {
    "tp2pp2": MeshLayout(tp=2, pp=2),
    "pp2vpp2": MeshLayout(pp=2, vpp=2),
    "tp1": MeshLayout(),
    "pp4": MeshLayout(pp=4),
    "tp2dp2": MeshLayout(tp=2, dp=2),
}
EXPERT_LAYOUTS = {
    "tp2pp2ep2": MeshLayout(tp=2, pp=2, ep=2, sequence_parallel=True),
    "tp2etp2": MeshLayout(tp=2, etp=2, sequence_parallel=True),
    "ep2pp2vpp2": MeshLayout(dp=2, ep=2, pp=2, vpp=2),
    "tp2dp2ep2etp2": MeshLayout(tp=2, dp=2, ep=2, etp=2, sequence_parallel=True),
}
FAST = ("tp2pp2", "pp2vpp2", "tp2pp2ep2")
CASES = [
    pytest.param(models, layout, id=name, marks=[pytest.mark.slow] * (name not in FAST))
    for models, layouts in ((MODELS, LAYOUTS), (WITH_EXPERTS, EXPERT_LAYOUTS))
    for name, layout in layouts.items()
]


@pytest.fixture(scope="module")
def converted(tiny: TinyModels, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Model -> folder of the weights in its converted checkpoint."""
    folder = tmp_path_factory.mktemp("converted")
    for model in (*MODELS, *WITH_EXPERTS):
        hf_to_megatron(Path(tiny(model)), folder / model)
    return {model: str(folder / model / "release") for model in (*MODELS, *WITH_EXPERTS)}


@pytest.mark.parametrize(("models", "layout"), CASES)
def test_megatron_loads_what_was_converted(
    models: tuple[str, ...],
    layout: MeshLayout,
    cluster: Cluster,
    tiny: TinyModels,
    converted: dict[str, str],
) -> None:
    cases = {tiny(model): converted[model] for model in models}
    for different in cluster.run(layout.size, jobs_convert.load, cases, layout, torch.float32):
        assert different == []


@pytest.mark.parametrize(("models", "layout"), CASES)
def test_what_megatron_saved_converts_back(
    models: tuple[str, ...],
    layout: MeshLayout,
    cluster: Cluster,
    tiny: TinyModels,
    tmp_path: Path,
) -> None:
    check_back(models, layout, {}, cluster, tiny, tmp_path)


@pytest.mark.parametrize(
    "option",
    [
        pytest.param("non_homogeneous_layers", marks=pytest.mark.slow),
        "singleton_local_shards",
    ],
)
def test_layers_and_experts_stored_apart_convert_back(
    option: str, cluster: Cluster, tiny: TinyModels, tmp_path: Path
) -> None:
    models = ("qwen2", "qwen3-moe")
    layout = EXPERT_LAYOUTS["tp2pp2ep2"]
    check_back(models, layout, {option: True}, cluster, tiny, tmp_path)


def check_back(
    models: tuple[str, ...],
    layout: MeshLayout,
    options: dict[str, bool],
    cluster: Cluster,
    tiny: TinyModels,
    folder: Path,
) -> None:
    """Saved by Megatron-Core, converted, compared with the folder that the model came from."""
    saved = {tiny(model): str(folder / "saved" / model / "iter_0000003") for model in models}
    cluster.run(layout.size, jobs_convert.save, saved, layout, options)
    for path, checkpoint in saved.items():
        above, target = Path(checkpoint).parent, folder / "back" / Path(path).name
        (above / "latest_checkpointed_iteration.txt").write_text("3")
        megatron_to_hf(above, target, hf=Path(path))
        same_tensors(target, Path(path))


def same_tensors(found: Path, expected: Path) -> None:
    """Every tensor of two folders of one file, byte for byte."""
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (found, expected))
    assert set(ours) == set(theirs)
    for name, value in ours.items():
        assert value.dtype == theirs[name].dtype and torch.equal(
            value.view(torch.uint8), theirs[name].view(torch.uint8)
        ), name


def test_keys_are_those_of_gpt_model(cluster: Cluster, tiny: TinyModels) -> None:
    """The committed list is what Megatron-Core says, and a conversion writes all of it.

    To make it again after an upgrade: write what `jobs_convert.keys` returns to keys.json.
    """
    models = (*FAMILIES, "qwen2-reward")
    (live,) = cluster.run(1, jobs_convert.keys, {model: tiny(model) for model in models})
    committed = json.loads(KEYS.read_text())
    assert live == committed
    for model in models:
        hf = json.loads((Path(tiny(model)) / "config.json").read_text())
        shape = model_shape_from_hf(hf)
        ours = {
            key: list(entry.full_shape)
            for entry in entries(shape)
            for key in (entry.key, *entry.other_keys)
        }
        wanted = {key: size for key, size in committed[model].items() if size}
        extra = {NORM_OF_EXPERTS: ours[LOCAL_NORM_OF_EXPERTS]} if shape.num_experts else {}
        assert ours == wanted | extra
        assert {key for key, size in committed[model].items() if not size} <= set(objects(shape))

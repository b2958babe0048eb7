"""Megatron's models against Hugging Face's, on every small mesh.

Proven: in fp32 the logit and the log-prob of every token of the vocabulary at every position differ
by less than 1e-5 from transformers', for six dense families and TP, PP in {1, 2}, and for two with
experts under expert and expert-tensor parallelism too; a Hugging Face folder loaded into Megatron
and written again has the same bytes of every tensor, in one file and in many. Not proven here: bf16
logits, context parallelism, TransformerEngine's layers.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import jobs_models
import pytest
import torch
from cluster import Cluster
from safetensors.torch import load_file
from tiny_models import DENSE, FAMILIES, VOCAB_SIZE, WITH_EXPERTS, TinyModels
from torch import Tensor

from megarl.mesh.layout import MeshLayout

pytestmark = pytest.mark.dist
LAYOUTS = {
    "tp1": MeshLayout(),
    "tp2": MeshLayout(tp=2),
    "pp2": MeshLayout(pp=2),
    "tp2pp2": MeshLayout(tp=2, pp=2),
}
EXPERT_LAYOUTS = {
    "tp1": MeshLayout(),
    "tp2": MeshLayout(tp=2, sequence_parallel=True),
    "pp2": MeshLayout(pp=2),
    "ep2": MeshLayout(dp=2, ep=2),
    "tp2etp2": MeshLayout(tp=2, etp=2, sequence_parallel=True),
    "tp2pp2ep2": MeshLayout(tp=2, pp=2, ep=2, sequence_parallel=True),
    "tp2dp2ep2etp2": MeshLayout(tp=2, dp=2, ep=2, etp=2, sequence_parallel=True),
}
FAST = ("tp1", "ep2", "tp2pp2ep2")
TOKENS = torch.randint(2, VOCAB_SIZE, (2, 24), generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module")
def hugging_face(tiny: TinyModels) -> dict[str, Tensor]:
    """Logits [b, s, V] by transformers."""
    from transformers import AutoModelForCausalLM

    found = {}
    for family in FAMILIES:
        model = AutoModelForCausalLM.from_pretrained(tiny(family), dtype=torch.float32)
        with torch.no_grad():
            found[family] = model(TOKENS).logits
    return found


@pytest.mark.parametrize("name", LAYOUTS)
def test_logits_equal_hugging_face(
    name: str, cluster: Cluster, tiny: TinyModels, hugging_face: dict[str, Tensor]
) -> None:
    check_logits(DENSE, LAYOUTS[name], cluster, tiny, hugging_face)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n not in FAST)) for n in EXPERT_LAYOUTS]
)
def test_logits_of_experts_equal_hugging_face(
    name: str, cluster: Cluster, tiny: TinyModels, hugging_face: dict[str, Tensor]
) -> None:
    check_logits(WITH_EXPERTS, EXPERT_LAYOUTS[name], cluster, tiny, hugging_face)


def check_logits(
    families: Sequence[str],
    layout: MeshLayout,
    cluster: Cluster,
    tiny: TinyModels,
    hugging_face: dict[str, Tensor],
) -> None:
    paths = {family: tiny(family) for family in families}
    answers = cluster.run(layout.size, jobs_models.every_logit, paths, layout, TOKENS)
    on_last_stage = [answer for answer in answers if answer[families[0]] is not None]
    assert len(on_last_stage) == layout.tp * layout.dp
    for answer in on_last_stage:
        for family in families:
            expected = hugging_face[family]
            for found, wanted in zip(
                answer[family], (expected, expected.log_softmax(-1)), strict=True
            ):
                worst = (found - wanted).abs().max()
                assert worst < 1e-5, f"{family}: {worst}"


@pytest.mark.parametrize("family", FAMILIES)
def test_round_trip_keeps_every_byte(
    family: str, cluster: Cluster, tiny: TinyModels, tmp_path: Path
) -> None:
    layout = EXPERT_LAYOUTS["tp2pp2ep2"] if family in WITH_EXPERTS else LAYOUTS["tp2pp2"]
    source, target = tiny(family), tmp_path / "exported"
    cluster.run(4, jobs_models.export, source, layout, "float32", str(target), 1 << 30)
    assert _same_bytes(load_file(target / "model.safetensors"), source)


def test_round_trip_in_many_files(cluster: Cluster, tiny: TinyModels, tmp_path: Path) -> None:
    """Small shards: every file within the limit, and the index names the file of every tensor."""
    limit, source, target = 40_000, tiny("qwen2"), tmp_path / "sharded"
    cluster.run(2, jobs_models.export, source, LAYOUTS["pp2"], "float32", str(target), limit)
    index = json.loads((target / "model.safetensors.index.json").read_text())
    found: dict[str, Tensor] = {}
    for name in sorted(set(index["weight_map"].values())):
        part = load_file(target / name)
        assert set(part) == {t for t, file in index["weight_map"].items() if file == name}
        assert len(part) == 1 or sum(t.nbytes for t in part.values()) <= limit
        found |= part
    assert len(set(index["weight_map"].values())) > 5
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in found.values())
    assert _same_bytes(found, source)
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_pretrained(target)
    # Read again from many files, on another mesh: the same bytes.
    again = tmp_path / "again"
    cluster.run(
        4, jobs_models.export, str(target), LAYOUTS["tp2pp2"], "float32", str(again), 1 << 30
    )
    assert _same_bytes(load_file(again / "model.safetensors"), source)


def test_bf16_export_is_the_rounded_file(
    cluster: Cluster, tiny: TinyModels, tmp_path: Path
) -> None:
    source, target = tiny("llama"), tmp_path / "bf16"
    cluster.run(2, jobs_models.export, source, LAYOUTS["tp2"], "bfloat16", str(target), 1 << 30)
    exported = load_file(target / "model.safetensors")
    original = load_file(Path(source) / "model.safetensors")
    assert set(exported) == set(original)
    for name, tensor in exported.items():
        assert torch.equal(tensor, original[name].bfloat16()), name


def _same_bytes(found: dict[str, Tensor], source: str) -> bool:
    original = load_file(Path(source) / "model.safetensors")
    assert set(found) == set(original)
    return all(
        tensor.dtype == original[name].dtype
        and torch.equal(tensor.view(torch.uint8), original[name].view(torch.uint8))
        for name, tensor in found.items()
    )

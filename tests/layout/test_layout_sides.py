"""Each side's placement against a literal restatement of that engine's sharding."""

from __future__ import annotations

import subprocess
import sys

import layout_reference as reference
import numpy as np
import pytest
from layout_world import UNTOUCHED, empty, fill, hf_values, model

from megarl.errors import ConfigError
from megarl.layout import (
    MegatronSlice,
    VllmSlice,
    file_placement,
    hf_tensors,
    megatron_parameters,
    megatron_placement,
    model_shape_from_hf,
    vllm_parameters,
    vllm_placement,
    with_scalar_head,
)
from megarl.layout.megatron_side import stage_layers

FAMILIES = ["llama", "mistral", "qwen2", "qwen3"]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("tp", [1, 2, 4, 8])
def test_vllm_is_what_its_loaders_make(family: str, tied: bool, tp: int) -> None:
    shape = model(family, tie_word_embeddings=tied)
    tensors = hf_values(shape, padded=True)
    for rank in range(tp):
        slice_ = VllmSlice(rank, tp)
        ours = fill(empty(vllm_parameters(shape, slice_)), vllm_placement(shape, slice_), tensors)
        theirs = reference.vllm_rank(shape, tensors, rank, tp)
        assert ours.keys() == theirs.keys()
        for name, expected in theirs.items():
            np.testing.assert_array_equal(ours[name], expected, name)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("tp", "pp", "vpp"), [(1, 1, 1), (2, 2, 1), (4, 2, 2), (2, 4, 1)])
def test_megatron_is_what_its_layers_expect(family: str, tp: int, pp: int, vpp: int) -> None:
    shape = model(family)
    tensors = hf_values(shape, padded=True)
    layers_seen = []
    for p in range(pp):
        for rank in range(tp):
            slice_ = MegatronSlice(rank, tp, p, pp, vpp)
            placement = megatron_placement(shape, slice_)
            ours = fill(empty(megatron_parameters(shape, slice_)), placement, tensors)
            assert all((buffer != UNTOUCHED).all() for buffer in ours.values())
            for chunk, layers in enumerate(stage_layers(shape, slice_)):
                for local, layer in enumerate(layers):
                    layers_seen += [layer] if rank == 0 else []
                    theirs = reference.megatron_layer(shape, tensors, layer, rank, tp)
                    for name, expected in theirs.items():
                        at = f"{chunk}/decoder.layers.{local}.{name}"
                        np.testing.assert_array_equal(ours[at], expected, at)
    assert sorted(layers_seen) == list(range(shape.num_layers))


def test_layers_are_dealt_as_megatron_deals_them() -> None:
    def deal(num_layers: int, pp: int, vpp: int, **options: int) -> list[list[list[int]]]:
        shape = model(num_hidden_layers=num_layers)
        slices = [MegatronSlice(0, 1, p, pp, vpp, **options) for p in range(pp)]
        return [[list(chunk) for chunk in stage_layers(shape, s)] for s in slices]

    assert deal(8, 2, 2) == [[[0, 1], [4, 5]], [[2, 3], [6, 7]]]
    assert deal(8, 2, 4) == [[[0], [2], [4], [6]], [[1], [3], [5], [7]]]
    uneven = deal(9, 3, 1, first_stage_layers=1, last_stage_layers=4)
    assert uneven == [[[0]], [[1, 2, 3, 4]], [[5, 6, 7, 8]]]
    uneven = deal(8, 2, 2, first_stage_layers=2)
    assert uneven == [[[0], [4]], [[1, 2, 3], [5, 6, 7]]]
    for odd in ((4, 1, 4), (4, 2, 0), (4, 2, 4), (4, 2, -1)):
        with pytest.raises(ConfigError, match="2 stages or more|needs a layer|do not fit"):
            deal(odd[0], odd[1], 1, first_stage_layers=odd[2])


def test_megatron_names_at_the_edges() -> None:
    def names(stage: int, pp: int, vpp: int = 1, **changes: bool) -> set[str]:
        shape = model(**changes)
        slice_ = MegatronSlice(0, 1, stage, pp, vpp)
        return {n for n in megatron_parameters(shape, slice_) if ".layers." not in n}

    embedding, norm = "embedding.word_embeddings.weight", "decoder.final_layernorm.weight"
    assert names(0, 1) == {f"0/{embedding}", f"0/{norm}", "0/output_layer.weight"}
    assert names(0, 1, tie_word_embeddings=True) == {f"0/{embedding}", f"0/{norm}"}
    assert names(0, 2, 2) == {f"0/{embedding}"}
    assert names(1, 2, 2, tie_word_embeddings=True) == {f"1/{norm}", "1/output_layer.weight"}
    tied = megatron_placement(model(tie_word_embeddings=True), MegatronSlice(0, 1, 1, 2))
    assert tied[-1].tensor == "model.embed_tokens.weight"


def test_transformer_engine_fuses_the_norms() -> None:
    local = megatron_parameters(model(), MegatronSlice())
    fused = megatron_parameters(model(), MegatronSlice(layernorm="te"))
    at = "0/decoder.layers.3."
    assert fused.keys() - local.keys() >= {
        at + "self_attention.linear_qkv.layer_norm_weight",
        at + "mlp.linear_fc1.layer_norm_weight",
    }
    assert not any("input_layernorm" in n or "pre_mlp_layernorm" in n for n in fused)
    assert len(fused) == len(local)


def test_vllm_stages() -> None:
    shape = model(tie_word_embeddings=True)
    first = vllm_parameters(shape, VllmSlice(0, 1, 0, 3))
    last = vllm_parameters(shape, VllmSlice(0, 1, 2, 3))
    middle = vllm_parameters(shape, VllmSlice(0, 1, 1, 3))
    assert {n.split(".")[2] for n in middle} == {"1", "2"}
    assert "model.embed_tokens.weight" in first and "model.norm.weight" not in first
    assert {"model.embed_tokens.weight", "model.norm.weight"} <= last.keys()


def test_value_model() -> None:
    shape = with_scalar_head(model(tie_word_embeddings=True))
    assert hf_tensors(shape)["score.weight"] == (1, 16)
    assert "lm_head.weight" not in hf_tensors(shape)
    for rank in range(2):
        last = MegatronSlice(rank, 2, 1, 2)
        assert megatron_parameters(shape, last)["0/value_head.weight"] == (1, 16)
        assert "0/output_layer.weight" not in megatron_parameters(shape, last)
    assert "0/value_head.weight" not in megatron_parameters(shape, MegatronSlice(0, 2, 0, 2))
    with pytest.raises(ConfigError, match="score.weight"):
        vllm_placement(shape, VllmSlice())


def test_a_shard_that_is_all_padding_has_no_piece_in_files() -> None:
    shape = model(vocab_size=40)
    tensors = {p.tensor for p in megatron_placement(shape, MegatronSlice(3, 4), padded_vocab=False)}
    assert shape.padded_vocab_size == 64
    assert not tensors & {"model.embed_tokens.weight", "lm_head.weight"}
    partial = megatron_placement(shape, MegatronSlice(2, 4), padded_vocab=False)
    assert partial[0].box.hi == (40, 16)
    whole = {piece.tensor: piece.box.shape for piece in file_placement(shape)}
    assert whole == hf_tensors(shape)


def test_shapes_from_config() -> None:
    base = {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "vocab_size": 100,
    }
    llama = model_shape_from_hf({"architectures": ["LlamaForCausalLM"], **base})
    assert (llama.num_kv_heads, llama.head_dim, llama.padded_vocab_size) == (4, 16, 128)
    assert not (llama.tied or llama.qkv_bias or llama.qk_norm)
    qwen3 = model_shape_from_hf({"model_type": "qwen3", "num_key_value_heads": 2, **base})
    assert (qwen3.head_dim, qwen3.qk_norm, qwen3.qkv_bias) == (128, True, False)
    assert model_shape_from_hf({"model_type": "llama", **base}, tp=3).padded_vocab_size == 192
    reward = {"architectures": ["Qwen2ForSequenceClassification"], "num_key_value_heads": 2}
    assert model_shape_from_hf(reward | base).scalar_head == "score.weight"
    assert model_shape_from_hf(reward | base).qkv_bias
    with pytest.raises(ConfigError, match="3 labels"):
        model_shape_from_hf(reward | base | {"id2label": {"0": "a", "1": "b", "2": "c"}})
    with pytest.raises(ConfigError, match="GPT2LMHeadModel.*LlamaForCausalLM"):
        model_shape_from_hf({"architectures": ["GPT2LMHeadModel"], **base})
    with pytest.raises(ConfigError, match="attention_bias"):
        model_shape_from_hf({"model_type": "llama", "attention_bias": True, **base})
    with pytest.raises(ConfigError, match="vocab_size"):
        model_shape_from_hf({"model_type": "llama", **base, "vocab_size": None})


@pytest.mark.parametrize(
    ("slice_", "message"),
    [
        (MegatronSlice(0, 8), "tensor-parallel size 8 does not divide num_query_groups 4"),
        (MegatronSlice(2, 2), "rank 2 is not in 0..1"),
        (MegatronSlice(0, 1, 0, 3), "4 layers do not fit 3 pipeline stages"),
        (MegatronSlice(0, 1, 0, 2, 4), "4 virtual stages"),
        (MegatronSlice(0, 1, 0, 2, first_stage_layers=5), "-1 layers are left"),
    ],
)
def test_impossible_megatron_layouts_are_refused(slice_: MegatronSlice, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        megatron_placement(model(), slice_)


def test_impossible_vllm_layouts_are_refused() -> None:
    with pytest.raises(ConfigError, match="size 3 does not divide"):
        vllm_placement(model(), VllmSlice(0, 3))
    shape = model(num_attention_heads=12, num_key_value_heads=3, hidden_size=48)
    with pytest.raises(ConfigError, match="one must divide the other"):
        vllm_placement(shape, VllmSlice(0, 2))


def test_the_package_is_pure() -> None:
    code = (
        "import sys, megarl.layout; "
        "bad = {'torch', 'numpy', 'megatron', 'vllm', 'transformers'} & sys.modules.keys(); "
        "sys.exit(str(bad) if bad else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)

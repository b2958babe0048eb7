"""What travels along with the weights, their types, and what Megatron-LM reads of a checkpoint."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_folder import change_config, write_folder
from tiny_models import TinyModels

from megarl.cli.main import main
from megarl.convert import commands
from megarl.errors import VerificationError

DOCS = Path(__file__).parents[2] / "docs" / "conversion.md"
ARGUMENTS = {
    "num_layers": 4,
    "hidden_size": 128,
    "ffn_hidden_size": 192,
    "num_attention_heads": 4,
    "group_query_attention": True,
    "num_query_groups": 2,
    "kv_channels": 32,
    "max_position_embeddings": 256,
    "position_embedding_type": "rope",
    "add_position_embedding": False,
    "use_rotary_position_embeddings": True,
    "rotary_base": 10000,
    "rotary_percent": 1.0,
    "add_bias_linear": False,
    "add_qkv_bias": False,
    "swiglu": True,
    "squared_relu": False,
    "untie_embeddings_and_output_weights": True,
    "apply_layernorm_1p": False,
    "vocab_size": 64,
    "padded_vocab_size": 64,
    "make_vocab_size_divisible_by": 64,
    "tokenizer_type": "HuggingFaceTokenizer",
    "norm_epsilon": 1e-6,
    "normalization": "RMSNorm",
    "qk_layernorm": False,
    "num_experts": None,
    "tensor_model_parallel_size": 1,
    "pipeline_model_parallel_size": 1,
    "iteration": 0,
    "consumed_train_samples": 0,
}


def convert(direction: str, source: Path, target: Path, *options: str) -> None:
    """Must succeed."""
    arguments = ["convert", direction, str(source), str(target), "--workers", "1", *options]
    assert main(arguments) == 0


def with_dtype(folder: Path, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Give a folder random weights of a type; returns them."""
    generator = torch.Generator().manual_seed(5)
    tensors = {
        name: torch.randn(value.shape, generator=generator).to(dtype)
        for name, value in load_file(folder / "model.safetensors").items()
    }
    save_file(tensors, folder / "model.safetensors")
    return tensors


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_type_is_kept_or_cast(dtype: torch.dtype, tmp_path: Path) -> None:
    source = write_folder(tmp_path / "model")
    tensors = with_dtype(source, dtype)
    convert("hf-to-megatron", source, tmp_path / "ckpt")
    for chosen in (None, torch.float32, torch.bfloat16, torch.float16):
        name = str(chosen).removeprefix("torch.")
        options = ("--dtype", name) if chosen else ()
        convert("megatron-to-hf", tmp_path / "ckpt", tmp_path / name, *options)
        found = load_file(tmp_path / name / "model.safetensors")
        assert found.keys() == tensors.keys()
        for key, value in found.items():
            assert torch.equal(value, tensors[key].to(chosen or dtype)), key
            assert value.dtype == (chosen or dtype)
        config = json.loads((tmp_path / name / "config.json").read_text())
        assert config["dtype"] == str(chosen or dtype).removeprefix("torch.")


def test_config_tokenizer_and_templates_travel_along(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "model")
    extra = {
        "generation_config.json": "{}",
        "chat_template.jinja": "{{ messages }}",
        "merges.txt": "a b",
        "LICENSE": "free",
    }
    for name, text in extra.items():
        (source / name).write_text(text)
    (source / "pytorch_model.bin").write_bytes(b"old weights")
    convert("hf-to-megatron", source, tmp_path / "ckpt")
    shutil.rmtree(source)
    convert("megatron-to-hf", tmp_path / "ckpt", tmp_path / "back")
    names = {path.name for path in (tmp_path / "back").iterdir()}
    assert names == {*extra, "config.json", "tokenizer.json", "tokenizer_config.json",
                     "model.safetensors"}  # fmt: skip
    assert {name: (tmp_path / "back" / name).read_text() for name in extra} == extra


def test_what_megatron_lm_reads(tmp_path: Path) -> None:
    """Folder, tracker and arguments, through Megatron-Core's own loader where there is one."""
    from megatron.core import dist_checkpointing

    convert("hf-to-megatron", write_folder(tmp_path / "model"), tmp_path / "ckpt")
    assert (tmp_path / "ckpt" / "latest_checkpointed_iteration.txt").read_text() == "release"
    release = tmp_path / "ckpt" / "release"
    assert dist_checkpointing.check_is_distributed_checkpoint(str(release))
    common = dist_checkpointing.load_common_state_dict(str(release))
    assert common["checkpoint_version"] == 3.0
    found = vars(common["args"])
    assert {name: found[name] for name in ARGUMENTS} == ARGUMENTS


def test_a_scaled_rope_and_experts_are_in_the_arguments(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    llama3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0}
    llama3 |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 64}
    source = write_folder(tmp_path / "llama", rope_scaling=llama3, rope_theta=500000.0)
    convert("hf-to-megatron", source, tmp_path / "a")
    args = torch.load(tmp_path / "a" / "release" / "common.pt", weights_only=False)["args"]
    assert (args.rotary_base, args.use_rope_scaling, args.rope_scaling_factor) == (500000, True, 8)
    said = capsys.readouterr().err
    assert "'original_max_position_embeddings': 64" in said and "Megatron-LM cannot" in said
    source = write_folder(
        tmp_path / "moe", architectures=["Qwen3MoeForCausalLM"], model_type="qwen3_moe",
        num_experts=4, moe_intermediate_size=32, num_experts_per_tok=3, norm_topk_prob=True,
    )  # fmt: skip
    convert("hf-to-megatron", source, tmp_path / "b")
    args = torch.load(tmp_path / "b" / "release" / "common.pt", weights_only=False)["args"]
    assert (args.num_experts, args.moe_ffn_hidden_size, args.moe_router_topk) == (4, 32, 3)
    assert (args.moe_router_pre_softmax, args.qk_layernorm) == (False, True)


def test_a_run_keeps_a_folder_for_each_role(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The one there is is taken; of several, one must be named."""
    convert("hf-to-megatron", write_folder(tmp_path / "model"), tmp_path / "ckpt")
    iteration = tmp_path / "run/iter_0000007"
    shutil.copytree(tmp_path / "ckpt/release", iteration / "actor")
    (tmp_path / "run/latest_checkpointed_iteration.txt").write_text("7\n")
    for number, source in enumerate((tmp_path / "run", iteration, iteration / "actor")):
        convert("megatron-to-hf", source, tmp_path / f"{number}", "--hf", str(tmp_path / "model"))
        assert (tmp_path / f"{number}" / "model.safetensors").exists()
    shutil.copytree(iteration / "actor", iteration / "critic")
    capsys.readouterr()
    target = str(tmp_path / "none")
    assert main(["convert", "megatron-to-hf", str(tmp_path / "run"), target]) == 2
    said = capsys.readouterr().err
    assert f"give one of {iteration / 'actor'}, {iteration / 'critic'}" in said


@pytest.mark.parametrize("direction", ["hf-to-megatron", "megatron-to-hf"])
def test_what_is_not_the_same_model_gets_no_name(
    direction: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_folder(tmp_path / "model")
    if direction == "megatron-to-hf":
        convert("hf-to-megatron", source, tmp_path / "ckpt")
        source = tmp_path / "ckpt"

    def differ(folder: Path, checkpoint: Path, dtype: str) -> str:
        assert (folder / "config.json").exists() and (checkpoint / ".metadata").exists()
        raise VerificationError("the two are not the same model")

    monkeypatch.setattr(commands, "_compare_logits", differ)
    arguments = [str(source), str(tmp_path / "out"), "--workers", "1", "--verify"]
    assert main(["convert", direction, *arguments]) == 1
    assert not list(tmp_path.glob("out*"))


def test_a_tied_head_may_be_there_once_more(tmp_path: Path) -> None:
    """Some folders hold the tied output layer too; it is left out if it is the embedding."""
    source = write_folder(tmp_path / "model", tie_word_embeddings=True)
    tensors = with_dtype(source, torch.bfloat16)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, source / "model.safetensors")
    convert("hf-to-megatron", source, tmp_path / "ckpt")
    convert("megatron-to-hf", tmp_path / "ckpt", tmp_path / "back")
    found = load_file(tmp_path / "back" / "model.safetensors")
    assert found.keys() == tensors.keys() - {"lm_head.weight"}
    tensors["lm_head.weight"] += 1
    save_file(tensors, source / "model.safetensors")
    arguments = ["convert", "hf-to-megatron", str(source), str(tmp_path / "other")]
    assert main(arguments) == 2


def test_a_critic_gets_the_architecture_of_its_head(tmp_path: Path) -> None:
    """A value model that was trained from a language model's config says what it is."""
    source = write_folder(tmp_path / "model", architectures=["LlamaForSequenceClassification"])
    change_config(source, num_labels=1)
    tensors = with_dtype(source, torch.float32)
    assert "score.weight" in tensors and "lm_head.weight" not in tensors
    convert("hf-to-megatron", source, tmp_path / "ckpt")
    language = write_folder(tmp_path / "language")
    convert("megatron-to-hf", tmp_path / "ckpt", tmp_path / "back", "--hf", str(language))
    config = json.loads((tmp_path / "back" / "config.json").read_text())
    assert config["architectures"] == ["LlamaForSequenceClassification"]
    assert config["num_labels"] == 1
    found = load_file(tmp_path / "back" / "model.safetensors")
    assert all(torch.equal(found[name], value) for name, value in tensors.items())


@pytest.mark.slow
@pytest.mark.parametrize(("model", "dtype"), [("mixtral", "float32"), ("qwen2-reward", "bfloat16")])
def test_verify_compares_logits(model: str, dtype: str, tiny: TinyModels, tmp_path: Path) -> None:
    """Through the scripts, there and back."""
    tools = DOCS.parents[1] / "tools"
    there, back = str(tmp_path / "there"), str(tmp_path / "back")
    for script, source, target in (
        ("convert_hf_to_megatron.py", tiny(model), there),
        ("convert_megatron_to_hf.py", there, back),
    ):
        options = ["--dtype", dtype] if target == there else []
        done = subprocess.run(
            [sys.executable, str(tools / script), source, target, "--verify", *options],
            capture_output=True,
            text=True,
            timeout=200,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        (found,) = re.findall(r"largest difference of \w+: (\S+) \(", done.stdout)
        assert float(found) < 1e-5


@pytest.mark.slow
def test_the_commands_of_the_page_run_as_they_stand(tiny: TinyModels, tmp_path: Path) -> None:
    """In order, in one folder; what they print is what the page says, numbers aside."""
    shutil.copytree(tiny("qwen3"), tmp_path / "Qwen3")
    shutil.copytree(tiny("qwen2-reward"), tmp_path / "reward-model")
    for block in re.findall(r"```console\n(.*?)```", DOCS.read_text(), re.DOTALL):
        for part in block.split("$ ")[1:]:
            command, _, expected = part.partition("\n")
            done = subprocess.run(
                ["bash", "-c", f'PATH="{Path(sys.executable).parent}:$PATH"; {command}'],
                cwd=tmp_path,
                capture_output=True,
                text=True,
                timeout=200,
            )
            assert done.returncode == 0, done.stderr[-3000:]
            assert no_numbers(done.stdout) == no_numbers(expected)


def no_numbers(text: str) -> str:
    """The text with every number as #."""
    return re.sub(r"\d+(\.\d+)?(e[+-]\d+)?", "#", text)

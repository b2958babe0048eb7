"""Tiny Hugging Face models with everything odd that a layout can trip over.

Head size 32 (vLLM's CPU attention wants it), 4 heads over 2 KV heads, 4 layers, a vocabulary of 70
that no tensor size divides, weights far from their symmetric start.
"""

from __future__ import annotations

from pathlib import Path

import torch

VOCAB_SIZE = 70
EOS = 1
DENSE = ("llama", "llama-tied", "llama3-rope", "qwen2", "qwen3", "mistral")
WITH_EXPERTS = ("mixtral", "qwen3-moe")
FAMILIES = (*DENSE, *WITH_EXPERTS)


class TinyModels:
    """Makes each model once; deterministic, so that processes see the same weights."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __call__(self, family: str) -> str:
        """The folder of a family's model, with tokenizer; "qwen2-reward" has a scalar head."""
        folder = self._folder / family
        if not folder.exists():
            _make_model(family, folder)
        return str(folder)


def _make_model(family: str, folder: Path) -> None:
    from transformers import (
        AutoModelForCausalLM,
        AutoModelForSequenceClassification,
        GenerationConfig,
        LlamaConfig,
        MistralConfig,
        MixtralConfig,
        Qwen2Config,
        Qwen3Config,
        Qwen3MoeConfig,
    )

    base = family.removesuffix("-reward")
    auto = AutoModelForCausalLM if base == family else AutoModelForSequenceClassification
    classes = {
        "llama": LlamaConfig,
        "llama-4kv": LlamaConfig,
        "llama-tied": LlamaConfig,
        "llama3-rope": LlamaConfig,
        "qwen2": Qwen2Config,
        "qwen3": Qwen3Config,
        "mistral": MistralConfig,
        "mixtral": MixtralConfig,
        "qwen3-moe": Qwen3MoeConfig,
    }
    settings = {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "max_position_embeddings": 256,
        "tie_word_embeddings": family in ("llama-tied", "qwen3"),
        "eos_token_id": EOS,
        "bos_token_id": None,
        "pad_token_id": 0,
        "sliding_window": None,
        "num_labels": 1,
    }
    if base == "qwen2":  # derives its head size
        settings |= {"hidden_size": 128}
        del settings["head_dim"]
    if family == "llama-4kv":  # four tensor ranks of Megatron want four groups
        settings["num_key_value_heads"] = 4
    if family == "mixtral":
        settings["num_local_experts"] = 4
    if family == "qwen3-moe":
        settings |= {"num_experts": 4, "moe_intermediate_size": 32, "norm_topk_prob": True}
        settings["num_experts_per_tok"] = 2
    if family == "llama3-rope":
        settings["rope_parameters"] = {
            "rope_type": "llama3",
            "rope_theta": 10000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        }
    generator = torch.Generator().manual_seed(sum(family.encode()))
    model = auto.from_config(classes[base](**settings)).float()
    for parameter in model.parameters():
        start = torch.ones_like(parameter) if parameter.dim() == 1 else torch.zeros_like(parameter)
        parameter.data = start + 0.08 * torch.randn(parameter.shape, generator=generator)
    model.save_pretrained(folder)
    GenerationConfig(eos_token_id=EOS, pad_token_id=0).save_pretrained(folder)
    _save_tokenizer(folder)


def _save_tokenizer(folder: Path) -> None:
    """One word per token: w2 is token 2."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "<eos>", *(f"w{index}" for index in range(2, VOCAB_SIZE))]
    vocab = {word: index for index, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<pad>"
    )
    wrapped.save_pretrained(folder)

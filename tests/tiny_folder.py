"""A Hugging Face folder and data sets of a few kilobytes, for tests that read files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast

from megarl.layout import hf_tensors, model_shape_from_hf

WORDS = [f"w{i}" for i in range(48)]

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "vocab_size": 64,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "hidden_act": "silu",
}
"""TP 1 and 2, PP 1, 2 and 4 fit it."""


def write_folder(folder: Path, *, num_words: int = 48, **changes: Any) -> Path:
    """Config, weights and tokenizer; `changes` go into config.json before weights are made."""
    folder.mkdir(parents=True, exist_ok=True)
    hf = LLAMA | changes
    (folder / "config.json").write_text(json.dumps(hf))
    shapes = hf_tensors(model_shape_from_hf(hf))
    tensors = {name: torch.zeros(shape) for name, shape in shapes.items()}
    save_file(tensors, str(folder / "model.safetensors"))
    vocabulary = {word: i for i, word in enumerate(["<unk>", "</s>", *WORDS[:num_words]])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(str(folder))
    return folder


def change_config(folder: Path, **changes: Any) -> None:
    """Edit config.json alone, so that it and the weights disagree."""
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def write_jsonl(path: Path, count: int = 32, **columns: Any) -> Path:
    """`count` rows with a prompt and a label, or with the columns given."""
    row = columns or {"prompt": "w1 w2", "label": "w3"}
    path.write_text("".join(json.dumps(row) + "\n" for _ in range(count)))
    return path

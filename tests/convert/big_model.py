"""A Hugging Face folder of any size, made in about the time that writing it takes."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from tiny_folder import LLAMA

from megarl.layout import hf_tensors, model_shape_from_hf
from megarl.weights.folder import new_folder, shard_tensors

LAYER_BYTES = 33_558_528
"""Of a layer of the model, in bf16."""


def write_big(folder: Path, num_layers: int, max_shard_bytes: int = 250_000_000) -> Path:
    """A Llama with 33.6 MB of random bf16 weights a layer, in files of at most that size."""
    hf = LLAMA | {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": num_layers,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 1000,
    }
    template = folder.with_name(folder.name + "-config")
    template.mkdir(parents=True)
    (template / "config.json").write_text(json.dumps(hf))
    shapes = hf_tensors(model_shape_from_hf(hf))
    shards = list(shard_tensors(shapes, 2, max_shard_bytes))
    values = torch.randn(4096 * 1024 + 4096).bfloat16()
    with new_folder(folder, template, len(shards)) as writer:
        for index, shard in enumerate(shards):
            # Each tensor starts at another element, so that no two are equal.
            writer.write(
                {
                    name: values[start : start + size.numel()].clone().view(size)
                    for start, (name, size) in enumerate(
                        ((n, torch.Size(s)) for n, s in shard.items()), start=index
                    )
                }
            )
        writer.finish(torch.bfloat16)
    return folder

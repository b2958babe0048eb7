"""What the demo starts from: a character tokenizer, a small Llama config, and arithmetic to do.

The base model reads a careless author, who often writes "?" and sometimes a wrong number: that
leaves reinforcement learning something to teach.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from megarl.data.rows import write_rows
from megarl.data.tasks import careless_text, write_task

EVASIVE, WRONG, COPIES = 0.45, 0.10, 5
PROMPT = "{expression} ="
TASKS = [
    {
        "name": "chain_sum",
        "params": {"min_terms": 2, "max_terms": 3, "min_digits": 1, "max_digits": 1},
    }
]
CHARACTERS = ["<pad>", "<eos>", *"0123456789+-*/()=? ."]


def write_assets(
    folder: Path, seed: int, *, train_size: int = 3400, heldout_size: int = 300
) -> None:
    """Write tokenizer, config and data of the demo into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    write_tokenizer(folder)
    write_config(folder)
    train, heldout = folder / "train.jsonl", folder / "heldout.jsonl"
    write_task(train, TASKS, train_size, seed, prompt_format=PROMPT)
    write_task(heldout, TASKS, heldout_size, seed, prompt_format=PROMPT, split="heldout")
    entries = [json.loads(line) for line in train.read_text().splitlines()]
    texts = [
        row
        for copy in range(COPIES)
        for row in careless_text(entries, EVASIVE, WRONG, seed=seed * COPIES + copy)
    ]
    write_rows(folder / "texts.jsonl", texts)


def write_tokenizer(folder: Path) -> None:
    """A byte-pair tokenizer without merges: one token per character."""
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    vocabulary = {character: index for index, character in enumerate(CHARACTERS)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.decoder = decoders.Fuse()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<pad>"
    ).save_pretrained(folder)


def write_config(folder: Path) -> None:
    """A Llama of 1.1 M parameters."""
    from transformers import GenerationConfig, LlamaConfig

    LlamaConfig(
        vocab_size=len(CHARACTERS),
        hidden_size=160,
        intermediate_size=448,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=256,
        initializer_range=0.05,  # small models learn faster from larger weights
        tie_word_embeddings=False,
        eos_token_id=1,
        pad_token_id=0,
        bos_token_id=None,
        architectures=["LlamaForCausalLM"],
    ).save_pretrained(folder)
    GenerationConfig(eos_token_id=1, pad_token_id=0).save_pretrained(folder)


def arguments(text: str) -> argparse.Namespace:
    """--dir and --seed of a program that writes assets; text: its description."""
    parser = argparse.ArgumentParser(description=text.splitlines()[0])
    parser.add_argument("--dir", type=Path, required=True, help="folder for the files")
    parser.add_argument("--seed", type=int, default=0, help="of everything (default: %(default)s)")
    return parser.parse_args()


if __name__ == "__main__":
    parsed = arguments(__doc__ or "")
    write_assets(parsed.dir, parsed.seed)

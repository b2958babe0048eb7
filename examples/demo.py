"""The main job on one machine: pretrain a small Llama, train it with PPO, check and report.

    make demo        # or: python -m examples.demo [--seed 0] [--dir runs/demo] [--steps N]

Everything is real: Megatron-Core in TP2 x PP2, vLLM in TP2 x 2 replicas, four processes over gloo.
Exit status 1 when held-out accuracy did not rise by 20 points.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from examples.checks import check_against_transformers, check_fresh_vllm
from examples.demo_assets import write_assets
from examples.stages import Stages, final_table, megarl, say

CONFIGS = Path(__file__).parent.parent / "configs" / "demo"
WANTED_POINTS = 20.0
LOGPROB_TOLERANCE = 1e-4


def main() -> int:
    """Run the stages that are not done yet; returns the exit status."""
    arguments = _arguments()
    folder = arguments.dir
    settings = {"seed": arguments.seed, "steps": arguments.steps, "pretrain": arguments.pretrain}
    stages = Stages(folder, settings)
    stages.run("1-assets", lambda: write_assets(folder / "assets", arguments.seed))
    stages.run("2-pretrain", lambda: _pretrain(folder, arguments))
    stages.run("3-transformers", lambda: _check_transformers(folder))
    stages.run("4-ppo", lambda: _ppo(folder, arguments))
    same = stages.run("5-fresh-vllm", lambda: _check_vllm(folder))
    return _report(folder, stages, same, arguments.wanted_points)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dir", type=Path, default=Path("runs/demo"))
    parser.add_argument("--steps", type=int, help="PPO steps; default: the config's")
    parser.add_argument("--pretrain", type=int, help="pretraining steps; default: the config's")
    parser.add_argument("--wanted-points", type=float, default=WANTED_POINTS)
    return parser.parse_args()


def _pretrain(folder: Path, arguments: argparse.Namespace) -> None:
    megarl(
        "sft",
        str(CONFIGS / "pretrain.yaml"),
        f"run.dir={folder / 'pretrain'}",
        f"run.seed={arguments.seed}",
        f"actor.model.path={folder / 'assets'}",
        f"data.train_path={folder / 'assets' / 'texts.jsonl'}",
        *([f"run.steps={arguments.pretrain}"] if arguments.pretrain else []),
    )


def _check_transformers(folder: Path) -> float:
    probe = json.loads((folder / "pretrain" / "probe.json").read_text())
    model = folder / "pretrain" / "model"
    difference = check_against_transformers(model, probe["token_ids"], probe["logprobs"])
    say(f"transformers loads {model}; largest log-prob difference {difference:.1e}")
    if not difference <= LOGPROB_TOLERANCE:
        raise SystemExit(f"Megatron and transformers differ by {difference} > {LOGPROB_TOLERANCE}")
    return difference


def _ppo(folder: Path, arguments: argparse.Namespace) -> None:
    megarl(
        "train",
        str(CONFIGS / "ppo.yaml"),
        f"run.dir={folder / 'ppo'}",
        f"run.seed={arguments.seed}",
        f"actor.model.path={folder / 'pretrain' / 'model'}",
        f"data.train_path={folder / 'assets' / 'train.jsonl'}",
        f"data.eval_path={folder / 'assets' / 'heldout.jsonl'}",
        *([f"run.steps={arguments.steps}"] if arguments.steps else []),
    )


def _check_vllm(folder: Path) -> dict[str, int]:
    steps = json.loads((folder / "ppo" / "summary.json").read_text())["steps"]
    answers = folder / "ppo" / f"answers-step{steps}.jsonl"
    result = check_fresh_vllm(folder / "ppo" / "model", answers)
    say(f"a fresh vLLM gives {result['same']} of {result['asked']} answers token for token")
    if result["same"] < result["asked"]:
        raise SystemExit("the exported model does not answer as the trained one did")
    return result


def _report(folder: Path, stages: Stages, same: dict[str, int], wanted: float) -> int:
    extra = {"fresh vLLM, same answers": f"{same['same']} of {same['asked']}"}
    return final_table("Demo", folder / "ppo", stages, extra, wanted)


if __name__ == "__main__":
    raise SystemExit(main())

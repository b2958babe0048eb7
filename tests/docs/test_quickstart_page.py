"""docs/quickstart.md runs as it stands: fine-tuning, reward model, PPO, evaluation."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_models import TinyModels

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "quickstart.md").read_text()
pytestmark = [pytest.mark.slow, pytest.mark.vllm, pytest.mark.timeout(500)]


@pytest.fixture(scope="module")
def folder(tiny: TinyModels, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model and the data that the page speaks of, and its configs."""
    folder = tmp_path_factory.mktemp("quickstart")
    shutil.copytree(tiny("llama"), folder / "model")
    rows = [(f"w{2 + i} w{3 + i}", f"w{4 + i}", f"w{30 + i % 9}") for i in range(16)]
    for name, keys in (
        ("answers", ("prompt", "response")),
        ("pairs", ("prompt", "chosen", "rejected")),
        ("prompts", ("prompt", "label")),
    ):
        lines = (json.dumps(dict(zip(keys, row, strict=False))) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text("".join(lines))
    for text in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL):
        (folder / text.split()[1]).write_text(text)
    return folder


def test_the_stages_run_after_each_other(folder: Path) -> None:
    (block,) = re.findall(r"```console\n(.*?)```", PAGE, re.DOTALL)
    commands = [line.removeprefix("$ megarl ") for line in block.splitlines()]
    assert len(commands) == 4
    for command in commands:
        words = [sys.executable, "-m", "megarl.cli.main", *shlex.split(command)]
        environment = os.environ | {"TORCHDYNAMO_DISABLE": "1", "OMP_NUM_THREADS": "1"}
        done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{command}: {done.stderr[-3000:]}"
    for stage, kind in (("sft", "CausalLM"), ("reward", "SequenceClassification"),
                        ("ppo", "CausalLM")):  # fmt: skip
        config = json.loads((folder / "runs" / stage / "model" / "config.json").read_text())
        assert config["architectures"][0].endswith(kind)
    evaluated = folder / "runs/ppo/eval"
    assert {"eval/accuracy", "eval/pass@2", "eval/maj@4"} <= json.loads(
        (evaluated / "eval.json").read_text()
    ).keys()
    lines = (evaluated / "samples.jsonl").read_text().splitlines()
    samples = [json.loads(line)["token_ids"] for line in lines]
    assert len(samples) == 16 * 4 and len({str(one) for one in samples}) > 32


def test_transformers_scores_as_the_reward_model_did(folder: Path) -> None:
    """The exported folder, and the scores that the stage left beside it."""
    import torch
    from transformers import AutoModelForSequenceClassification

    probe = json.loads((folder / "runs/reward/probe.json").read_text())
    model = AutoModelForSequenceClassification.from_pretrained(folder / "runs/reward/model")
    assert model.num_labels == 1 and len(probe["scores"]) == 16
    with torch.no_grad():
        for ids, score in zip(probe["token_ids"], probe["scores"], strict=True):
            assert float(model(torch.tensor([ids])).logits) == pytest.approx(score, abs=1e-5)
    assert max(probe["scores"]) - min(probe["scores"]) > 1e-6

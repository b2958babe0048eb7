"""The data of a pipeline: what each stage gets, and the same bytes for the same seed."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from examples import pipeline_assets
from examples.pipeline_assets import write_pipeline_assets
from megarl.data.preferences import load_preferences

ROOT = Path(__file__).parents[2]
SIZES = {"train_size": 300, "heldout_size": 30}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("assets")
    write_pipeline_assets(folder, 1, **SIZES)
    return folder


def rows(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_same_seed_same_bytes(folder: Path, tmp_path: Path) -> None:
    write_pipeline_assets(tmp_path / "again", 1, **SIZES)
    write_pipeline_assets(tmp_path / "other", 2, **SIZES)
    first, again, other = map(contents, (folder, tmp_path / "again", tmp_path / "other"))
    assert first == again
    differ = {name for name in first if first[name] != other[name]}
    assert differ == {
        "train.jsonl", "heldout.jsonl", "texts.jsonl", "pretrain.jsonl", "sft.jsonl",
        "sft-heldout.jsonl", "preferences.jsonl", "preferences-heldout.jsonl",
    }  # fmt: skip


def test_finetuning_reads_a_better_author(folder: Path) -> None:
    labels = {row["prompt"]: row["label"] for row in rows(folder, "train")}
    texts = [row["text"] for row in rows(folder, "pretrain")]
    assert len(texts) == 5 * 300
    prompts = [text.partition("=")[0] + "=" for text in texts]
    right = sum(
        text == f"{prompt} {labels[prompt]}" for text, prompt in zip(texts, prompts, strict=True)
    )
    answers = rows(folder, "sft")
    better = sum(row["response"] == f" {labels[row['prompt']]}" for row in answers)
    wanted = 1 - pipeline_assets.SFT_EVASIVE - pipeline_assets.SFT_WRONG
    assert abs(right / len(texts) - 0.45) < 0.01 and abs(better / len(answers) - wanted) < 0.01
    held = {row["prompt"]: row["label"] for row in rows(folder, "heldout")}
    known = rows(folder, "sft-heldout")
    assert {row["prompt"]: row["response"] for row in known} == {
        prompt: f" {label}" for prompt, label in held.items()
    }


def test_preferences_are_right_against_wrong(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for name, prompts, times in (
        ("preferences", "train", 3),
        ("preferences-heldout", "heldout", 1),
    ):
        labels = {row["prompt"]: row["label"] for row in rows(folder, prompts)}
        pairs = rows(folder, name)
        assert Counter(row["prompt"] for row in pairs) == dict.fromkeys(labels, times)
        for row in pairs:
            assert row["chosen"] == f" {labels[row['prompt']]}" and row["rejected"][0] == " "
            wrong = row["rejected"].strip()
            assert wrong == "?" or 0 < abs(int(wrong) - int(labels[row["prompt"]])) < 10
        evaded = sum(row["rejected"] == " ?" for row in pairs) / len(pairs)
        assert abs(evaded - pipeline_assets.EVADED) < 0.02
        found = load_preferences(
            folder / f"{name}.jsonl", tokenizer, max_prompt_length=32, max_response_length=8
        )
        assert (len(found), found.dropped, found.undecided) == (len(pairs), 0, 0)
        unknown = tokenizer.unk_token_id
        assert not any(unknown in pair.chosen_ids + pair.rejected_ids for pair in found)
    shared = {row["prompt"] for row in rows(folder, "train")} & set(labels)
    assert not shared, "held-out prompts are not trained on"


def test_the_command(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "examples.pipeline_assets", "--dir", str(tmp_path), "--seed", "3"],
        cwd=ROOT, capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(rows(tmp_path, "sft")) == pipeline_assets.SFT_SIZE

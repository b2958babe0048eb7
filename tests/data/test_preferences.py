"""Preferences: prompts and both answers, in each form that files have; what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from test_examples import WORDS, make_tokenizer, say

from megarl.data.preferences import Pair, load_pairs
from megarl.errors import DataError


def read(tmp_path: Path, row: dict[str, Any], **settings: Any) -> Pair:
    """The pair of one row."""
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row) + "\n")
    return load_pairs(path, make_tokenizer(), **{"max_length": 64} | settings)[0]


def shown(pair: Pair) -> tuple[str, str, str]:
    """Prompt and answers, in words."""
    parts = pair.prompt_ids, pair.chosen_ids, pair.rejected_ids
    a, b, c = (" ".join(WORDS[token] for token in part) for part in parts)
    return a, b, c


def test_text(tmp_path: Path) -> None:
    row = {"prompt": "w1 w2", "chosen": "w3", "rejected": "w4 w5", "gap": 2}
    pair = read(tmp_path, row, margin_key="gap")
    assert shown(pair) == ("w1 w2", "w3 <eos>", "w4 w5 <eos>")
    assert pair.margin == 2.0
    assert read(tmp_path, row).margin == 0.0


TEMPLATED = ("<user> w1 <end> <bot>", "w3 <end>", "w4 <end>")


@pytest.mark.parametrize(
    ("row", "settings"),
    [
        ({"prompt": "w1", "chosen": "w3", "rejected": "w4"}, {"apply_chat_template": True}),
        ({"prompt": [say("user", "w1")], "chosen": "w3", "rejected": "w4"}, {}),
        ({"chosen": [say("user", "w1"), say("assistant", "w3")],
          "rejected": [say("user", "w1"), say("assistant", "w4")]}, {}),
        ({"prompt": [say("user", "w1")], "chosen": [say("assistant", "w3")],
          "rejected": [say("assistant", "w4")]}, {}),
    ],
    ids=["text", "prompt of messages", "whole conversations", "all of messages"],
)  # fmt: skip
def test_messages(row: dict[str, Any], settings: dict[str, Any], tmp_path: Path) -> None:
    assert shown(read(tmp_path, row, **settings)) == TEMPLATED


def test_long_pairs_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [{"prompt": "w1", "chosen": "w2", "rejected": "w3 " * n} for n in (1, 9)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = load_pairs(path, make_tokenizer(), max_length=5)
    assert (len(found), found.dropped) == (1, 1)


@pytest.mark.parametrize(
    ("row", "settings", "words"),
    [
        ({"prompt": "w1", "chosen": "w2"}, {}, "line 1: there is no column 'rejected'"),
        ({"prompt": "w1", "chosen": "w2", "rejected": "w2"}, {}, "both answers are the same"),
        ({"prompt": "w1", "chosen": "w2", "rejected": None}, {}, "'rejected' holds None"),
        ({"prompt": "w1", "chosen": "w2", "rejected": "w3", "gap": "2"},
         {"margin_key": "gap"}, "column 'gap' holds '2', which is no number"),
        ({"chosen": [say("user", "w1")], "rejected": [say("user", "w2")]}, {},
         "no message in common"),
        ({"chosen": [say("user", "w1")], "rejected": [say("user", "w1")]}, {},
         "one message after what they have in common"),
        ({"prompt": "w1 " * 99, "chosen": "w2", "rejected": "w3"}, {},
         "all 1 pairs are longer than 64 tokens"),
    ],
)  # fmt: skip
def test_refusals(
    row: dict[str, Any], settings: dict[str, Any], words: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError) as refusal:
        read(tmp_path, row, **settings)
    assert words in str(refusal.value)

"""Choices, JSON, patterns, as models write them."""

from __future__ import annotations

from typing import Any

import pytest

from megarl.errors import ConfigError, DataError
from megarl.rewards.formats import JsonFormat, MultipleChoice, PatternFormat
from megarl.types import Prompt

SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}


def prompt(label: str = "", **extra: Any) -> Prompt:
    return Prompt(5, (1,), "q", label, "unit", extra)


@pytest.mark.parametrize(
    ("text", "chosen"),
    [
        ("The answer is (b).", "B"),
        ("A dog barks. So: C", "C"),
        ("I think so", None),
        (r"thus \boxed{\text{D}}", "D"),
        ("**Answer:** A", "A"),
        ("It's A or B", "B"),
        ("Answer: B. But A is close", "B"),
        ("choice C is wrong; the answer is D", "D"),
        ("E", None),
        ("", None),
        ("Cats and Dogs", None),
        ("(C)", "C"),
    ],
)
def test_what_is_chosen(text: str, chosen: str | None) -> None:
    assert MultipleChoice("ABCD").chosen(text) == chosen
    assert MultipleChoice("ABCD").read_answer(prompt("A"), text) == chosen


def test_choices_are_scored_and_checked() -> None:
    reward = MultipleChoice("ABCD")
    assert reward([prompt("(c)"), prompt("A")], ["C", "B"]) == [1.0, 0.0]
    reward.check_prompts([prompt("B.")])
    for label in ("E", "AB", ""):
        with pytest.raises(DataError, match=f"label '{label}', which is none of A, B, C, D"):
            reward.check_prompts([prompt(label)])
    with pytest.raises(ConfigError, match="choices is 'abc'"):
        MultipleChoice("abc")


def test_json() -> None:
    reward = JsonFormat(SCHEMA, partial=0.25)
    texts = [
        '{"n": 3}',
        'So:\n```json\n{"n": 4}\n```',
        '{"n": "x"}',
        "[1]",
        "{n: 3}",
        "",
        "[" * 9999,
    ]
    assert reward([prompt()] * 7, texts) == [1.0, 1.0, 0.25, 0.25, 0.0, 0.0, 0.0]
    own = prompt(schema='{"type": "array"}')
    assert reward([own, own], ["[1]", '{"n": 3}']) == [1.0, 0.25]
    with pytest.raises(DataError, match="no JSON schema"):
        JsonFormat().check_prompts([prompt()])
    with pytest.raises(DataError, match="the schema is none: 7 is not"):
        JsonFormat().check_prompts([prompt(schema={"type": 7})])


def test_patterns() -> None:
    reward = PatternFormat(r"<think>.*</think>\s*<answer>.*</answer>")
    texts = ["<think>a\nb</think>\n<answer>3</answer> ", "<answer>3</answer>", "x <think></think>"]
    assert reward([prompt()] * 3, texts) == [1.0, 0.0, 0.0]
    with pytest.raises(ConfigError, match="no regular expression"):
        PatternFormat("(")

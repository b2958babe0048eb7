"""Code rewards: programs of responses against tests."""

from __future__ import annotations

from typing import Any

import pytest

from megarl.errors import DataError
from megarl.rewards.code import CodeTests, program_of
from megarl.types import Prompt

ADD = "a, b = map(int, input().split())\nprint(a + b)"


def prompt(tests: Any) -> Prompt:
    return Prompt(3, (1,), "q", "", "code", {"tests": tests})


def test_the_program_is_the_last_block() -> None:
    text = "First:\n```python\nx = 1\n```\nno:\n```\nx = 2\n```\ndone"
    assert program_of(text) == "x = 2\n"
    assert program_of("print(3)") == "print(3)"


def test_scores() -> None:
    """Right; right but for one test; wrong; not a program; prints and then fails; endless."""
    io = [{"input": "1 2\n", "output": "3"}, {"input": "-4 4", "output": "0  \n\n"}]
    asserts = [{"code": "assert f(2) == 4"}, {"code": "assert f(3) == 9"}]
    cases = [
        (io, f"```python\n{ADD}\n```", 1.0, 1.0),
        (io, "print(3)", 0.0, 0.5),
        (io, "print('no')", 0.0, 0.0),
        (io, "I do not know", 0.0, 0.0),
        (io, "", 0.0, 0.0),
        (io, ADD + "\nraise SystemExit(1)", 0.0, 0.0),
        (io[:1], "while True: pass", 0.0, 0.0),
        (asserts, "def f(x):\n    return x * x", 1.0, 1.0),
        (asserts, "def f(x):\n    return 2 * x", 0.0, 0.5),
    ]
    prompts, responses = [prompt(case[0]) for case in cases], [case[1] for case in cases]
    assert CodeTests(time_s=2.0)(prompts, responses) == [case[2] for case in cases]
    assert CodeTests(partial=True, time_s=2.0)(prompts, responses) == [case[3] for case in cases]


@pytest.mark.parametrize("tests", [None, [], "print(1)", [{"input": "1"}], [{"code": 3}], [7]])
def test_tests_that_are_none(tests: Any) -> None:
    with pytest.raises(DataError, match=r"prompt_id 3 .*column `tests`"):
        CodeTests().check_prompts([prompt(tests)])

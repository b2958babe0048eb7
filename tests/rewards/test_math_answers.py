"""Math answers: equal values in different words; what never ends counts as wrong."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from megarl.errors import DataError, RunError
from megarl.rewards.base import read_answers
from megarl.rewards.math_answers import MathVerify
from megarl.rewards.workers import Workers
from megarl.types import Prompt, Rollout, RolloutRequest


def prompt(label: str) -> Prompt:
    return Prompt(9, (1,), "q", label, "math", {})


@pytest.fixture(scope="module")
def reward() -> Iterator[MathVerify]:
    made = MathVerify(time_s=2.0, workers=2)
    yield made
    made.close()


RIGHT = [
    ("1/2", r"so \boxed{0.5}"),
    (r"\frac{3}{4}", "The answer is 75%"),
    ("She has 70 + 2 = 72 eggs. #### 72", "That makes 72."),
    ("x^2+1", "$1 + x^2$"),
    ("1,234", r"\boxed{1234}"),
    (r"\sqrt{8}", r"$2\sqrt{2}$"),
    (r"\{1, 2\}", r"$\{2, 1\}$"),
]
WRONG = [
    ("1/2", r"\boxed{0.51}"),
    ("72", "I cannot say"),
    ("5", ""),
    ("5", "}{$$\\frac{"),
    ("3", "4 then 5"),
]


def test_values(reward: MathVerify) -> None:
    labels, texts = zip(*RIGHT, *WRONG, strict=True)
    scores = reward([prompt(label) for label in labels], texts)
    assert scores == [1.0] * len(RIGHT) + [0.0] * len(WRONG)


SAME = [
    (r"so \boxed{0.5}", "The answer is 1/2", r"$\frac{2}{4}$"),
    ("72", "That makes 72.0", "$x = 72$", r"\boxed{72}"),
    (r"$\sqrt{8}$", r"$2\sqrt{2}$"),
    ("$(x+1)^2$", "$x^2 + 2x + 1$"),
    (r"$\{2, 0.5\}$", r"$\{\frac12, 2\}$"),
    (r"$[1, 2)$", r"$[1.0, 2)$"),
    ("73",),
    ("I cannot say", "", "}{$$\\frac{"),
    ("$9^{9^{9^{9}}}$",),
]


def test_equal_values_are_one_answer(reward: MathVerify) -> None:
    """Read on several threads, as an evaluation does; none, and what never ends, are no answer."""
    texts = [text for same in SAME for text in same]
    rollouts = [
        Rollout(RolloutRequest(i, i, prompt("1"), 0), (1,), (0.0,), text, "stop", 0)
        for i, text in enumerate(texts)
    ]
    found = dict(zip(texts, read_answers(reward, "math_verify", rollouts), strict=True))
    values = [{found[text] for text in same} for same in SAME]
    assert all(len(each) == 1 for each in values), found
    assert values[-2:] == [{None}, {None}]
    assert len({value for (value,) in values}) == len(SAME) - 1


def test_what_never_ends_is_wrong_and_holds_nobody_up(reward: MathVerify) -> None:
    started = time.monotonic()
    texts = ["$9^{9^{9^{9}}}$", "2", "2", "$8^{8^{8^{8^{8}}}}$", "2"]
    assert reward([prompt("2")] * 5, texts) == [0.0, 1.0, 1.0, 0.0, 1.0]
    assert time.monotonic() - started < 20
    assert reward([prompt("2")], ["2"]) == [1.0]


def test_labels_without_a_value(reward: MathVerify) -> None:
    reward.check_prompts([prompt("7"), prompt("#### 8")])
    with pytest.raises(DataError, match=r"prompt_id 9 .*label '', in which"):
        reward.check_prompts([prompt("7"), prompt("")])


def test_workers_end_with_whoever_started_them() -> None:
    program = (
        "from megarl.rewards.math_answers import *\n"
        "m = MathVerify(time_s=99.0, workers=1)\n"
        "p = Prompt(0, (1,), '', '2', '', {})\n"
        "m([p], ['2']); print(m._workers._all[0]._process.pid, flush=True)\n"
        "m([p], ['$9^{9^{9^{9}}}$'])\n"
    )
    asking = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    assert asking.stdout is not None
    worker = Path(f"/proc/{int(asking.stdout.readline())}")
    assert worker.exists()
    asking.kill()
    asking.communicate()
    deadline = time.monotonic() + 10
    while worker.exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_module_that_does_not_start() -> None:
    with pytest.raises(RunError, match=r"python -m megarl.no_such_module does not start"):
        Workers("megarl.no_such_module", 1, 1.0).ask([1])

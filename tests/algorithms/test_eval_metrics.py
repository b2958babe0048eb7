"""Metrics of evaluations: against counting over subsets, and by hand."""

from __future__ import annotations

import itertools

import pytest

from megarl.algorithms.eval_metrics import Marks, answer_metrics, measure

SAMPLES = {  # source, greedy answer right, verdicts on four samples, majority
    "p0": ("sums", True, (1, 1, 1, 0), 1.0),
    "p1": ("sums", False, (0, 0, 0, 1), 0.0),
    "p2": ("sums", True, (0, 0, 0, 0), 0.0),
    "p3": ("words", False, (1, 0, 1, 0), 0.5),
}
MARKS = [
    Marks(source, 2.0 * right - 1.0, i != 1, right, len(samples), sum(samples), majority)
    for i, (source, right, samples, majority) in enumerate(SAMPLES.values())
]


def pass_at(samples: tuple[int, ...], k: int) -> float:
    subsets = list(itertools.combinations(samples, k))
    return sum(any(subset) for subset in subsets) / len(subsets)


def test_over_all_and_per_source() -> None:
    found = measure(MARKS, answer_metrics(4, (1, 2, 4), judged=True))
    for name, end in (("sums", "/sums"), ("words", "/words"), (None, "")):
        own = [row for row in SAMPLES.values() if name in (None, row[0])]
        for k in (1, 2, 4):
            expected = sum(pass_at(row[2], k) for row in own) / len(own)
            assert found[f"eval/pass@{k}{end}"] == pytest.approx(expected, abs=1e-12)
    assert found["eval/maj@4"] == 1.5 / 4 and found["eval/maj@4/sums"] == 1 / 3
    assert found["eval/sampled_accuracy"] == 6 / 16 == pytest.approx(found["eval/pass@1"])
    assert found["eval/sampled_accuracy/words"] == 0.5
    assert found["eval/accuracy"] == 0.5 and found["eval/accuracy/words"] == 0.0
    assert found["eval/reward_mean"] == 0.0 and found["eval/reward_mean/sums"] == 1 / 3
    assert found["eval/finished"] == 3 / 4 and found["eval/finished/sums"] == 2 / 3
    assert len(found) == 3 * 8


def test_one_source_is_not_said_twice() -> None:
    found = measure(MARKS[:3], answer_metrics(0, (), judged=True))
    assert found == {"eval/accuracy": 2 / 3, "eval/reward_mean": 1 / 3, "eval/finished": 2 / 3}


def test_nothing_is_right_or_wrong_without_a_verdict() -> None:
    marks = [Marks("sums", 0.25, True, None), Marks("words", 0.75, False, None)]
    found = measure(marks, answer_metrics(4, (1,), judged=False))
    assert found == {
        "eval/reward_mean": 0.5, "eval/reward_mean/sums": 0.25, "eval/reward_mean/words": 0.75,
        "eval/finished": 0.5, "eval/finished/sums": 1.0, "eval/finished/words": 0.0,
    }  # fmt: skip

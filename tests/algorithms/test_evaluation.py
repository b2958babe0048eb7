"""Statistics of several answers: against counting over all subsets, and by hand."""

from __future__ import annotations

import itertools

import pytest
import torch

from megarl.algorithms.evaluation import majority_vote, pass_at_k, pass_at_ks
from megarl.errors import ConfigError


def test_pass_at_k_is_the_share_of_subsets_with_a_right_one():
    cases = [(n, c, k) for n in range(1, 7) for c in range(n + 1) for k in range(1, n + 1)]
    for n, c, k in cases:
        samples = [True] * c + [False] * (n - c)
        subsets = list(itertools.combinations(samples, k))
        want = sum(any(subset) for subset in subsets) / len(subsets)
        got = pass_at_k(torch.tensor([n]), torch.tensor([c]), k)
        assert got.item() == pytest.approx(want, abs=1e-12)


def test_pass_at_k_of_many_questions_with_unequal_samples():
    n, c = torch.tensor([4, 200, 3]), torch.tensor([1, 7, 0])
    got = pass_at_k(n, c, 3)
    one_by_one = [pass_at_k(a[None], b[None], 3).item() for a, b in zip(n, c, strict=True)]
    assert got.tolist() == one_by_one and got.dtype == torch.float64
    assert pass_at_k(n, c, 1).tolist() == pytest.approx([1 / 4, 7 / 200, 0])
    assert pass_at_k(torch.tensor([100_000]), torch.tensor([1]), 50_000).item() == pytest.approx(
        0.5
    )
    assert pass_at_k(torch.tensor([2000]), torch.tensor([2000]), 1000).item() == 1
    assert pass_at_k(n[:0], c[:0], 8).shape == (0,)


def test_pass_at_k_refuses_what_it_cannot_say():
    with pytest.raises(ConfigError, match="pass@4 of 3 samples"):
        pass_at_k(torch.tensor([5, 3]), torch.tensor([1, 1]), 4)
    with pytest.raises(ConfigError, match="pass@0"):
        pass_at_k(torch.tensor([5]), torch.tensor([1]), 0)
    with pytest.raises(ConfigError, match="more right answers than samples"):
        pass_at_k(torch.tensor([5]), torch.tensor([6]), 1)


@pytest.mark.parametrize(
    ("answers", "right", "want"),
    [
        (["7", "8", "7"], [True, False, True], 1.0),
        (["7", "8", "8"], [True, False, False], 0.0),
        (["7", "8"], [True, False], 0.5),  # equally frequent: either, by chance
        (["7", "8", "9", "9", "7"], [True, False, False, False, True], 0.5),
        ([None, None, "8"], [False, False, True], 1.0),  # no answer, no vote
        (["7", "7"], [True, False], 0.5),  # one answer, two verdicts
        ([None], [True], 0.0),
        ([], [], 0.0),
    ],
)
def test_majority_votes(answers, right, want):
    assert majority_vote(answers, right) == want
    assert majority_vote(answers[::-1], right[::-1]) == want


def test_votes_and_verdicts_go_together():
    with pytest.raises(ValueError, match="2 answers, 1 verdicts"):
        majority_vote(["a", "b"], [True])


def test_the_usual_k():
    found = {n: pass_at_ks(n) for n in (0, 1, 2, 6, 8, 9)}
    assert found == {
        0: (), 1: (1,), 2: (1, 2), 6: (1, 2, 4, 6), 8: (1, 2, 4, 8), 9: (1, 2, 4, 8, 9)
    }  # fmt: skip
    assert pass_at_ks(8, [5, 1, 5]) == (1, 5)

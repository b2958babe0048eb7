"""Which tokens clip_cov and kl_cov pick: exactly those of a sort over all, for any split."""

from __future__ import annotations

import pytest
import torch
from ragged import F64, ragged

from megarl.algorithms.policy.covariance import (
    CovarianceSums,
    clip_cov_candidates,
    covariance_sums,
    covariances,
    kl_cov_candidates,
    num_selected,
    select,
)

SPLITS = [[12], [1] * 12, [5, 0, 7], [3, 3, 3, 3]]
LOW, HIGH = -0.5, 0.4


def literal_covariances(batch) -> dict[tuple[int, int], float]:
    """(row, column) -> (log p - mean) (A - mean), over the tokens of the mask."""
    places = batch.mask.nonzero().tolist()
    logp = {(i, j): batch.old_logprobs[i, j].item() for i, j in places}
    adv = {(i, j): batch.advantages[i, j].item() for i, j in places}
    mean_p, mean_a = sum(logp.values()) / len(logp), sum(adv.values()) / len(adv)
    return {place: (logp[place] - mean_p) * (adv[place] - mean_a) for place in logp}


def picked(batch, split, count, kind, seed=0, order=None, padding=0):
    """The selection as ranks make it, each with the rows of its part, in the whole's order."""
    rows = torch.arange(12) if order is None else order
    parts = [(index, batch.rows(index).wider(padding)) for index in rows.split(split)]
    args = [(b.old_logprobs, b.advantages, b.mask) for _, b in parts]
    sums = sum((covariance_sums(*a) for a in args), CovarianceSums.zero())
    given = []
    for (index, b), a in zip(parts, args, strict=True):
        cov = covariances(*a, sums)
        if kind == "kl_cov":
            given.append(kl_cov_candidates(cov, b.mask, index, count))
        else:
            given.append(
                clip_cov_candidates(cov, b.mask, index, count, low=LOW, high=HIGH, seed=seed)
            )
        assert len(given[-1].key) <= count
    selected = torch.zeros(12, batch.mask.shape[1], dtype=torch.bool)
    for index, b in parts:
        selected[index] = select(given, count, index, b.mask)[:, : batch.mask.shape[1]]
    return selected


def test_covariances_restate_the_formula():
    batch = ragged(0, rows=12)
    args = (batch.old_logprobs, batch.advantages, batch.mask)
    sums = covariance_sums(*args)
    got = covariances(*args, sums)
    for (i, j), want in literal_covariances(batch).items():
        assert got[i, j].item() == pytest.approx(want, abs=1e-10)
    assert (got[~batch.mask] == 0).all() and got.dtype == F64
    # Their mean is the covariance, which is what the entropy falls by.
    assert sums.tokens == batch.mask.sum()


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("count", [0, 1, 5, 1000])
def test_kl_cov_picks_the_globally_largest(split, count):
    batch = ragged(1, rows=12)
    cov = literal_covariances(batch)
    want = sorted(cov, key=lambda place: -cov[place])[:count]
    order = torch.randperm(12, generator=torch.Generator().manual_seed(count))
    for kwargs in ({}, {"order": order}, {"padding": 4}):
        got = picked(batch, split, count, "kl_cov", **kwargs)
        assert {tuple(place) for place in got.nonzero().tolist()} == set(want)


@pytest.mark.parametrize("split", SPLITS)
def test_clip_cov_picks_at_random_in_the_range_and_alike_for_any_split(split):
    batch = ragged(2, rows=12)
    eligible = {place for place, c in literal_covariances(batch).items() if LOW < c < HIGH}
    assert 6 < len(eligible) < batch.mask.sum()
    whole = picked(batch, [12], 6, "clip_cov")
    order = torch.randperm(12, generator=torch.Generator().manual_seed(3))
    for kwargs in ({}, {"order": order}, {"padding": 3}):
        assert torch.equal(picked(batch, split, 6, "clip_cov", **kwargs), whole)
    places = {tuple(place) for place in whole.nonzero().tolist()}
    assert len(places) == 6 and places < eligible
    assert not torch.equal(picked(batch, split, 6, "clip_cov", seed=1), whole)
    every = picked(batch, split, 1000, "clip_cov")
    assert {tuple(place) for place in every.nonzero().tolist()} == eligible


def test_the_draw_is_even():
    """Over many seeds each token in the range is picked about as often."""
    batch = ragged(2, rows=12)
    times = sum(picked(batch, [12], 6, "clip_cov", seed=seed).double() for seed in range(600))
    eligible = sum(LOW < c < HIGH for c in literal_covariances(batch).values())
    expected = 600 * 6 / eligible
    seen = times[times > 0]
    assert len(seen) == eligible
    assert (seen - expected).abs().max() < 5 * expected**0.5


@pytest.mark.parametrize("split", SPLITS)
def test_equal_covariances_are_picked_by_place(split):
    batch = ragged(3, rows=12)
    batch.advantages.fill_(1.0)
    batch.old_logprobs.fill_(-1.0)
    got = picked(batch, split, 4, "kl_cov")
    assert got.nonzero().tolist() == batch.mask.nonzero().tolist()[:4]


def test_nothing_to_pick_from():
    batch = ragged(0, rows=12)
    batch.mask.zero_()
    for kind in ("kl_cov", "clip_cov"):
        assert not picked(batch, [5, 0, 7], 3, kind).any()
    assert not select([], 3, torch.arange(12), batch.mask).any()


def test_impossible_tokens_have_a_finite_covariance():
    batch = ragged(0, rows=12)
    batch.old_logprobs[2, 0] = -torch.inf
    args = (batch.old_logprobs, batch.advantages, torch.ones_like(batch.mask))
    args = tuple(torch.nan_to_num(x, neginf=-torch.inf) for x in args[:2]) + args[2:]
    assert covariances(*args, covariance_sums(*args)).isfinite().all()


def test_shares_become_counts():
    assert [num_selected(0.002, n) for n in (0, 1, 999, 1000, 1500)] == [0, 1, 1, 2, 3]

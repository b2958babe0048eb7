"""Off-policy corrections against loops, the decoupled loss, and what they make of nothing."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import literal_corrections as literal
import pytest
import torch
from ragged import F64, ragged, spread_over
from test_policy import inputs_of, run

from megarl.algorithms.corrections import CorrectionOptions, correct
from megarl.algorithms.policy import PolicyLossOptions
from megarl.algorithms.stats import CorrectionStats
from megarl.errors import ConfigError

VARIANTS = [
    CorrectionOptions(),
    *(
        CorrectionOptions(rollout_is=level, rollout_is_mode=mode, **limits)
        for level, mode, limits in itertools.product(
            ("token", "sequence"),
            ("truncate", "mask"),
            (
                {"rollout_is_threshold": 1.2},
                {"rollout_is_threshold": 1.3, "rollout_is_threshold_lower": 0.9},
            ),
        )
    ),
    *(
        CorrectionOptions(rollout_is="token", rollout_rs=level, **limits)
        for level, limits in itertools.product(
            ("token", "sequence", "geometric"),
            (
                {"rollout_rs_threshold": 1.25},
                {"rollout_rs_threshold": 1.4, "rollout_rs_threshold_lower": 0.5},
            ),
        )
    ),
    CorrectionOptions(rollout_token_veto_threshold=0.6),
    CorrectionOptions(
        rollout_is="sequence", rollout_rs="geometric", rollout_token_veto_threshold=0.5
    ),
]


@pytest.mark.parametrize("options", VARIANTS, ids=range(len(VARIANTS)))
@pytest.mark.parametrize("seed", range(3))
def test_corrections_restate_their_definitions(options, seed):
    batch = ragged(seed)
    rows = batch.inside(batch.old_logprobs), batch.inside(batch.ref_logprobs)
    weights, kept, sums, largest = literal.correct(*rows, options)
    got = correct(batch.old_logprobs, batch.ref_logprobs, batch.mask, options)
    assert got.weights.dtype == torch.float32
    torch.testing.assert_close(
        got.weights, spread_over(weights, batch.mask).float(), rtol=1e-6, atol=0
    )
    assert torch.equal(got.kept.double(), spread_over(kept, batch.mask))
    for name, want in sums.items():
        exact = name != "weight"  # of fp32 weights
        value = getattr(got.stats, name).item()
        assert value == pytest.approx(want, abs=1e-10 if exact else 1e-5), name
    assert got.max_ratio.item() == pytest.approx(largest, abs=1e-10)


def test_the_variants_do_something():
    results = [
        correct(b.old_logprobs, b.ref_logprobs, b.mask, options).stats
        for b in [ragged(0)]
        for options in VARIANTS
    ]
    assert all(s.truncated > 0 or s.masked > 0 for s in results[1:])
    assert results[0].truncated == results[0].masked == 0


def test_by_hand():
    # trainer / rollout: 4 and 1/2, their product 2, their geometric mean sqrt(2)
    old = torch.tensor([[math.log(4.0), math.log(0.5)]])
    rollout, mask = torch.zeros(1, 2), torch.ones(1, 2, dtype=torch.bool)

    def weights(**options):
        return correct(old, rollout, mask, CorrectionOptions(**options)).weights.tolist()[0]

    assert weights() == [1.0, 1.0]
    assert weights(rollout_is="token") == pytest.approx([2.0, 0.5])
    assert weights(rollout_is="token", rollout_is_mode="mask") == pytest.approx([0.0, 0.5])
    assert weights(rollout_is="sequence", rollout_is_threshold=3.0) == pytest.approx([2.0, 2.0])
    assert weights(rollout_rs="token", rollout_rs_threshold=3.0) == [0.0, 1.0]
    assert weights(rollout_rs="sequence", rollout_rs_threshold=1.9) == [0.0, 0.0]
    assert weights(rollout_rs="geometric", rollout_rs_threshold=1.9) == [1.0, 1.0]
    assert weights(rollout_token_veto_threshold=0.6) == [0.0, 0.0]


def test_metrics_by_hand():
    # ratios 1 and 3: (4 / 2)^2 / (10 / 2) of the sample counts
    old = torch.tensor([[0.0, math.log(3.0)]])
    mask = torch.ones(1, 2, dtype=torch.bool)
    got = correct(old, torch.zeros(1, 2), mask, CorrectionOptions(rollout_is="token"))
    assert got.stats.metrics(got.max_ratio) == pytest.approx(
        {
            "gen_kl_error": (3 - 1 - math.log(3)) / 2,
            "rollout_corr/eff_sample_size": 0.8,
            "rollout_corr/ratio_mean": 2.0,
            "rollout_corr/ratio_max": 3.0,
            "rollout_corr/weight_mean": 1.5,
            "rollout_corr/truncated_fraction": 0.5,
            "rollout_corr/masked_fraction": 0.0,
        },
        rel=1e-6,
    )


def test_equal_policies_need_no_correction():
    batch = ragged(0)
    for options in VARIANTS:
        got = correct(batch.old_logprobs, batch.old_logprobs, batch.mask, options)
        assert torch.equal(got.weights, batch.mask.float()) and torch.equal(got.kept, batch.mask)
        metrics = got.stats.metrics(got.max_ratio)
        assert metrics["gen_kl_error"] == 0 and metrics["rollout_corr/eff_sample_size"] == 1


@pytest.mark.parametrize("seed", range(3))
def test_decoupled_ppo_is_ppo_with_the_behaviours_weights(seed):
    """AReaL's objective, literally: (p_prox / p_behav) min(u A, clip(u) A), u = p_new / p_prox."""
    batch = ragged(seed)
    proximal, behaviour = batch.old_logprobs, batch.ref_logprobs
    inputs = inputs_of(batch)
    want = 0.0
    lists = (batch.logprobs, proximal, behaviour, batch.advantages, inputs.weights)
    for rows in zip(*(batch.inside(x) for x in lists), strict=True):
        for new, prox, behav, a, weight in zip(*rows, strict=True):
            u = math.exp(new - prox)
            objective = math.exp(prox - behav) * min(u * a, min(max(u, 0.8), 1.2) * a)
            want -= weight * objective
    unbounded = CorrectionOptions(rollout_is="token", rollout_is_threshold=1e9)
    weights = correct(proximal, behaviour, batch.mask, unbounded).weights
    corrected = replace(inputs, old_logprobs=proximal, weights=inputs.weights * weights)
    loss, _, _ = run("ppo", corrected, PolicyLossOptions())
    assert loss.item() == pytest.approx(want, rel=1e-6)  # weights are fp32


@pytest.mark.parametrize("options", VARIANTS, ids=range(len(VARIANTS)))
def test_any_split_order_and_padding_give_the_same(options):
    batch = ragged(4, rows=9)
    whole = correct(batch.old_logprobs, batch.ref_logprobs, batch.mask, options)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(1))
    stats, largest = CorrectionStats.zero(), torch.zeros((), dtype=F64)
    for rows in order.split([2, 0, 6, 1]):
        part = batch.rows(rows).wider(3)
        got = correct(part.old_logprobs, part.ref_logprobs, part.mask, options)
        assert torch.equal(got.weights[:, :9], whole.weights[rows])
        assert torch.equal(got.kept[:, :9], whole.kept[rows]) and not got.kept[:, 9:].any()
        stats, largest = stats + got.stats, torch.maximum(largest, got.max_ratio)
    assert stats.metrics(largest) == pytest.approx(whole.stats.metrics(whole.max_ratio), abs=1e-10)


@pytest.mark.parametrize("options", VARIANTS, ids=range(len(VARIANTS)))
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_impossible_tokens_and_empty_responses_stay_finite(options, dtype):
    inf, nan = float("inf"), float("nan")
    old = torch.tensor([[-inf, -1.0, -inf, -2.0], [nan] * 4, [-1.0, nan, nan, nan]], dtype=dtype)
    rollout = torch.tensor(
        [[-1.0, -inf, -inf, -2.0], [nan] * 4, [-1.0, nan, nan, nan]], dtype=dtype
    )
    mask = torch.tensor([[True] * 4, [False] * 4, [True, False, False, False]])
    got = correct(old, rollout, mask, options)
    assert got.weights.isfinite().all() and got.stats.to_vector().isfinite().all()
    assert not got.kept[1].any() and got.weights[2].tolist() == [1.0, 0.0, 0.0, 0.0]
    for shape in ((0, 3), (2, 0)):
        empty = torch.zeros(shape)
        nothing = correct(empty, empty, empty.bool(), options)
        assert nothing.max_ratio == 0
        assert nothing.stats.metrics(nothing.max_ratio)["rollout_corr/eff_sample_size"] == 1


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"rollout_is": "tokens"}, "rollout_is 'tokens' is unknown: one of null, token, sequence"),
        ({"rollout_is_mode": "icepop"}, "rollout_is_mode 'icepop' is unknown: one of truncate"),
        ({"rollout_rs": "mean"}, "rollout_rs 'mean' is unknown: .*geometric"),
        ({"rollout_is_threshold": 0.0}, "rollout_is_threshold is 0.0"),
        (
            {"rollout_is_threshold": 2.0, "rollout_is_threshold_lower": 3.0},
            "rollout_is_threshold is 2.0 and rollout_is_threshold_lower 3.0",
        ),
        ({"rollout_rs_threshold": 0.5}, "rollout_rs_threshold is 0.5 and .*_lower 2.0"),
        ({"rollout_token_veto_threshold": 1.5}, "rollout_token_veto_threshold is 1.5"),
    ],
)
def test_options_that_contradict_themselves_are_named(changed, message):
    with pytest.raises(ConfigError, match=message):
        CorrectionOptions(**changed)

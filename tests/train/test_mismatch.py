"""The log-prob histogram: its figures against numpy's, and the limits that stop a run."""

import numpy as np
import pytest
import torch

from megarl.errors import RunError
from megarl.train.mismatch import MismatchHistogram, check_mismatch


def histogram(values: torch.Tensor) -> MismatchHistogram:
    out = MismatchHistogram()
    out.add(values)
    return out


@pytest.mark.parametrize("scale", [1e-7, 1e-3, 0.3])
def test_figures_are_those_of_the_values(scale: float) -> None:
    d = torch.randn(20_000, generator=torch.Generator().manual_seed(0)).double() * scale
    found = histogram(d)
    size = d.abs().numpy()
    assert found.mean == pytest.approx(size.mean(), rel=1e-9)
    assert found.p99 == pytest.approx(np.quantile(size, 0.99), rel=0.05)
    metrics = found.metrics()
    assert metrics["train_rollout_logprob_abs_diff/max"] == pytest.approx(size.max(), rel=1e-12)


def test_parts_add_up_to_the_whole() -> None:
    d = torch.randn(1000, generator=torch.Generator().manual_seed(1)).double()
    whole, parts = histogram(d), [histogram(d[:300]), histogram(d[300:])]

    def total(vector: torch.Tensor) -> torch.Tensor:
        other = torch.cat([parts[1]._counts, parts[1]._sums])
        return vector + other

    both = parts[0].reduced(total, lambda own: [own, parts[1]._max])
    assert both.metrics() == pytest.approx(whole.metrics(), rel=1e-12)


def test_no_tokens_is_no_difference() -> None:
    empty = histogram(torch.zeros(0))
    assert empty.mean == empty.p99 == 0.0
    check_mismatch(empty, 0.1, 0.1)


def test_limits_stop_the_run_and_name_themselves() -> None:
    far = histogram(torch.full((100,), 0.5))
    with pytest.raises(RunError, match=r"0\.5 nats \(mean\).*logprob_diff_mean_limit 0\.2"):
        check_mismatch(far, 0.2, 2.0)
    with pytest.raises(RunError, match="p99"):
        check_mismatch(far, 1.0, 0.1)
    check_mismatch(far, 0.0, 0.0)


def test_a_nan_passes_every_limit() -> None:
    with pytest.raises(RunError, match="nan"):
        check_mismatch(histogram(torch.tensor([float("nan")])), 1e9, 0.0)
    hidden = torch.zeros(1000)
    hidden[5] = float("nan")  # one of a thousand, which no percentile would show
    with pytest.raises(RunError, match="inf"):
        check_mismatch(histogram(hidden), 0.0, 1e9)

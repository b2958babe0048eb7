"""KL estimators against the exact divergence, and the controllers' steering."""

from __future__ import annotations

import math

import pytest
import torch

from megarl.algorithms.kl import AdaptiveKL, FixedKL, kl_controller, kl_estimate
from megarl.errors import ConfigError, RunError

F64 = torch.float64


def test_estimators_restate_schulmans_formulas():
    logprobs = torch.tensor([[-1.0, -0.5, torch.nan]], dtype=F64)
    reference = torch.tensor([[-2.0, -0.25, torch.nan]], dtype=F64)
    mask = torch.tensor([[True, True, False]])
    for kind, formula in {
        "k1": lambda d: -d,
        "k2": lambda d: d * d / 2,
        "k3": lambda d: math.exp(d) - 1 - d,
        "abs": abs,
    }.items():
        got = kl_estimate(logprobs, reference, mask, kind)[0].tolist()
        assert got == pytest.approx([formula(-1.0), formula(0.25), 0.0], abs=1e-10)


@pytest.mark.parametrize(("alias", "kind"), [("kl", "k1"), ("mse", "k2"), ("low_var_kl", "k3")])
def test_aliases(alias, kind):
    x, y, mask = torch.randn(2, 3), torch.randn(2, 3), torch.ones(2, 3, dtype=torch.bool)
    assert torch.equal(kl_estimate(x, y, mask, alias), kl_estimate(x, y, mask, kind))


def test_k1_and_k3_are_unbiased():
    """The expectation under the policy, taken over the whole vocabulary, is the KL itself."""
    generator = torch.Generator().manual_seed(0)
    p, q = torch.randn(2, 50, dtype=F64, generator=generator).log_softmax(-1)
    exact = (p.exp() * (p - q)).sum().item()
    mask = torch.ones(1, 50, dtype=torch.bool)
    for kind in ("k1", "k3"):
        expected = (p.exp() * kl_estimate(p[None], q[None], mask, kind)[0]).sum().item()
        assert expected == pytest.approx(exact, abs=1e-10)


@pytest.mark.parametrize("kind", ["k1", "k2", "k3"])
def test_gradcheck(kind):
    x = (-torch.rand(2, 3, dtype=F64)).requires_grad_()
    y, mask = -torch.rand(2, 3, dtype=F64), torch.arange(3)[None, :] < torch.tensor([[3], [1]])
    assert torch.autograd.gradcheck(lambda t: kl_estimate(t, y, mask, kind), x)


def test_adaptive_controller_follows_ziegler():
    controller = AdaptiveKL(0.1, target_kl=6.0, horizon=1000)
    controller.update(6.6, num_samples=100)  # 10 % over: e = 0.1
    assert controller.value == pytest.approx(0.1 * (1 + 0.1 * 100 / 1000), abs=1e-12)
    before = controller.value
    controller.update(0.0, num_samples=100)  # far under: e is held at -0.2
    assert controller.value == pytest.approx(before * 0.98, abs=1e-12)
    controller.update(0.0, num_samples=10**6)
    assert controller.value > 0


def test_controllers_resume():
    first = AdaptiveKL(0.1, 6.0, 1000)
    first.update(20.0, 64)
    second = AdaptiveKL(0.1, 6.0, 1000)
    second.load_state_dict(first.state_dict())
    assert second.value == first.value != 0.1
    fixed = FixedKL(0.2)
    fixed.update(99.0, 64)
    fixed.load_state_dict(fixed.state_dict())
    assert fixed.value == 0.2


def test_bad_settings_are_named():
    with pytest.raises(ConfigError, match=r"kl_ctrl.target_kl is 0"):
        kl_controller("adaptive", kl_coef=0.1, target_kl=0)
    with pytest.raises(ConfigError, match="kl_coef is -1"):
        kl_controller("fixed", kl_coef=-1)
    with pytest.raises(ConfigError, match="'pid' is unknown: one of fixed, adaptive"):
        kl_controller("pid", kl_coef=1)
    with pytest.raises(ConfigError, match="'k4' is unknown: one of k1"):
        kl_estimate(torch.zeros(1, 1), torch.zeros(1, 1), torch.ones(1, 1).bool(), "k4")
    with pytest.raises(RunError, match="KL is nan"):
        kl_controller("adaptive", kl_coef=0.1).update(float("nan"), 1)

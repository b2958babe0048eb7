"""KL estimators against the exact divergence, and the controllers' steering."""

from __future__ import annotations

import math

import pytest
import torch
from ragged import ragged

from megarl.algorithms.kl import KL_KINDS, AdaptiveKL, FixedKL, kl_controller, kl_estimate
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


def test_all_kinds_agree_with_a_loop_on_a_ragged_batch():
    batch = ragged(0)
    for kind in KL_KINDS:
        name = {"kl": "k1", "mse": "k2", "low_var_kl": "k3"}.get(kind.rstrip("+"), kind.rstrip("+"))
        want = torch.zeros(batch.mask.shape, dtype=F64)
        for i, j in batch.mask.nonzero().tolist():
            d = batch.ref_logprobs[i, j].item() - batch.logprobs[i, j].item()
            want[i, j] = {
                "k1": -d,
                "k2": d * d / 2,
                "k3": math.exp(d) - 1 - d,
                "abs": abs(d),
            }[name]
        got = kl_estimate(batch.logprobs, batch.ref_logprobs, batch.mask, kind)
        torch.testing.assert_close(got, want, rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", ["k1+", "k2+", "k3+", "abs+", "kl+", "low_var_kl+"])
def test_with_a_plus_the_gradient_is_that_of_k2(kind):
    batch = ragged(1)

    def gradient(which):
        logprobs = batch.logprobs.clone().requires_grad_()
        kl_estimate(logprobs, batch.ref_logprobs, batch.mask, which).sum().backward()
        return logprobs.grad

    assert torch.equal(gradient(kind), gradient("k2"))
    assert (gradient(kind)[~batch.mask] == 0).all() and (gradient(kind) != 0).any()


def test_the_gradient_of_k2_alone_is_the_gradient_of_the_kl():
    """In expectation over the whole vocabulary, of samples of the policy itself."""
    generator = torch.Generator().manual_seed(0)
    logits, other = torch.randn(2, 50, dtype=F64, generator=generator)
    logits.requires_grad_()
    p, q, mask = logits.log_softmax(-1), other.log_softmax(-1), torch.ones(1, 50).bool()
    (exact,) = torch.autograd.grad((p.exp() * (p - q)).sum(), logits, retain_graph=True)
    for kind in ("k2", "k3+", "k3", "k1"):
        estimates = kl_estimate(p[None], q[None], mask, kind)[0]
        (expected,) = torch.autograd.grad(
            (p.detach().exp() * estimates).sum(), logits, retain_graph=True
        )
        right = torch.allclose(expected, exact, rtol=0, atol=1e-10)
        assert right == (kind in ("k2", "k3+"))


@pytest.mark.parametrize("kind", KL_KINDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_impossible_tokens_stay_finite(kind, dtype):
    inf = float("inf")
    new = torch.tensor([[-inf, -1.0, -inf, -1e4, 0.0, torch.nan]], dtype=dtype, requires_grad=True)
    ref = torch.tensor([[-1.0, -inf, -inf, 0.0, -1e4, torch.nan]], dtype=dtype)
    mask = torch.tensor([[True] * 5 + [False]])
    got = kl_estimate(new, ref, mask, kind)
    got.sum().backward()
    assert got.isfinite().all() and new.grad.isfinite().all() and got[0, 2] == 0 == got[0, 5]
    assert got.dtype == torch.float32


def test_no_tokens():
    for kind in KL_KINDS:
        for shape in ((0, 3), (2, 0)):
            zeros = torch.zeros(shape)
            assert kl_estimate(zeros, zeros, zeros.bool(), kind).shape == shape


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

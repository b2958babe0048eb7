"""Names: what is known, what users add, and every mistake in one message."""

from __future__ import annotations

import importlib.metadata

import pytest
import torch
from ragged import ragged
from test_advantages import inputs_of

from megarl.algorithms import advantages, policy
from megarl.algorithms.advantages import AdvantageInputs, compute_advantages, estimator
from megarl.algorithms.policy import (
    PolicyLossInputs,
    PolicyLossOptions,
    compute_policy_loss,
    policy_loss,
)
from megarl.algorithms.registry import Registry
from megarl.errors import ConfigError

SOURCE = """
import torch
from megarl.algorithms import advantages, policy
from megarl.algorithms.advantages import Estimator

@advantages.register("halves", needs_groups=True)
def halves(inputs):
    half = torch.where(inputs.mask, 0.5, 0.0)
    return half, half

def plain(inputs):
    return inputs.rewards, inputs.rewards

record = Estimator("mine", plain, needs_greedy=True)

@policy.register("zero")
def zero(inputs, options):
    return 0 * inputs.logprobs.sum(), None

CONSTANT = 3
"""


@pytest.fixture(autouse=True)
def _leave_no_trace(monkeypatch):
    for registry in (advantages.base._ESTIMATORS, policy.base._LOSSES):
        for name in ("_entries", "_loaded"):
            monkeypatch.setattr(registry, name, dict(getattr(registry, name)))


@pytest.fixture
def own(tmp_path):
    path = tmp_path / "own.py"
    path.write_text(SOURCE)
    return path


def test_unknown_names_list_the_known_ones():
    with pytest.raises(
        ConfigError, match=r"adv_estimator 'grop' is unknown \(did you mean 'grp"
    ) as e:
        estimator("grop")
    assert all(name in str(e.value) for name in advantages.estimator_names())
    with pytest.raises(
        ConfigError, match=r"policy_loss 'gpso' is unknown \(did you mean 'gspo'"
    ) as e:
        policy_loss("gpso")
    assert all(name in str(e.value) for name in policy.policy_loss_names())


def test_the_built_in_ones():
    assert advantages.estimator_names() == (
        "gae", "gpg", "grpo", "grpo_no_std", "grpo_passk", "grpo_process", "opo",
        "reinforce_plus_plus", "reinforce_plus_plus_baseline", "remax", "rloo",
    )  # fmt: skip
    assert policy.policy_loss_names() == (
        "cispo", "clip_cov", "geo_mean", "gspo", "kl_cov", "ppo", "reinforce", "sapo",
    )  # fmt: skip


def test_decorators_add_names_and_guard_those_that_are_taken():
    with pytest.raises(ConfigError, match="'gae' is registered already"):

        @advantages.register("gae")
        def _taken(inputs):
            raise AssertionError

    for _ in range(2):  # as a notebook's cell that is run again

        @advantages.register("constant")
        def _constant(inputs):
            return inputs.rewards, inputs.rewards

    assert estimator("constant").compute is _constant
    assert not estimator("constant").needs_values and estimator("gae").needs_values


def test_a_file_gives_functions_registered_or_not_and_records(own):
    registered = estimator(f"{own}:halves")
    assert registered.name == "halves" and registered.needs_groups
    assert estimator("halves") is registered is estimator(f"{own}:halves")
    plain = estimator(f"{own}:plain")
    assert plain.name == f"{own}:plain" and not plain.needs_groups
    assert estimator(f"{own}:record").needs_greedy
    assert policy_loss(f"{own}:zero").name == "zero"
    batch = ragged(0)
    got, _ = compute_advantages(f"{own}:halves", inputs_of(batch))
    assert torch.equal(got, torch.where(batch.mask, 0.5, 0.0))


def test_a_file_runs_once_so_that_its_functions_share_what_it_keeps(own):
    one, other = estimator(f"{own}:plain"), policy_loss(f"{own}:zero")
    assert one.compute.__globals__ is other.compute.__globals__


def test_a_file_that_changed_is_read_anew(own, tmp_path):
    first = estimator(f"{own}:plain")
    (tmp_path / "sub").mkdir()
    own.write_text(SOURCE + "\ndef later(inputs):\n    return None\n")
    assert estimator(f"{own}:later").name.endswith("later")
    assert estimator(f"{own}:plain") is first


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("CONSTANT", "a int is no function that can be called"),
        ("plian", r"has no 'plian' \(did you mean 'plain'\?\)"),
    ],
)
def test_what_a_file_does_not_offer_is_named(own, spec, message):
    with pytest.raises(ConfigError, match=message):
        estimator(f"{own}:{spec}")
    with pytest.raises(ConfigError, match="algorithm.adv_estimator none.py:f: none.py is not a"):
        estimator("none.py:f")


def test_entry_points(monkeypatch):
    def points(group):
        target = {
            "megarl.adv_estimators": "megarl.algorithms.advantages.critic:_gae",
            "megarl.policy_losses": "megarl.algorithms.policy.base:policy_stats",
        }[group]
        return [importlib.metadata.EntryPoint(f"of {group}", target, group)]

    monkeypatch.setattr(importlib.metadata, "entry_points", points)
    assert estimator("of megarl.adv_estimators") is estimator("gae")
    assert policy_loss("of megarl.policy_losses").compute is policy.policy_stats
    with pytest.raises(ConfigError, match="'of megarl.policy_losses' is unknown"):
        estimator("of megarl.policy_losses")


def test_what_an_estimator_lacks_is_said():
    inputs = inputs_of(ragged(0))
    lacking = type(inputs)(inputs.mask, inputs.rewards, inputs.scores, inputs.group)
    with pytest.raises(ConfigError, match="needs the values of a critic"):
        compute_advantages("gae", lacking)
    with pytest.raises(ConfigError, match="score of a greedy answer"):
        compute_advantages("remax", lacking)


def test_a_registry_takes_any_record():
    registry = Registry("some.key", "some.group", advantages.Estimator, ("inputs",))
    registry.add(advantages.Estimator("one", print))
    assert registry.names() == ("one",) and registry.get("one").compute is print


WRONG = """
import torch

def no_arguments():
    return None

def three(inputs, options, mask):
    return None

def one_tensor(inputs):
    return torch.zeros(2, 3)

def by_row(inputs):
    return torch.zeros(2), torch.zeros(2)

def only_loss(inputs, options):
    return torch.zeros(())

def no_scalar(inputs, options):
    from megarl.algorithms.policy import policy_stats
    return inputs.logprobs, policy_stats(inputs, inputs.log_ratio())
"""


def test_what_own_functions_take_and_return_is_checked(tmp_path):
    path = tmp_path / "wrong.py"
    path.write_text(WRONG)
    for name in ("no_arguments", "three"):
        with pytest.raises(ConfigError, match=rf"adv_estimator .*{name}: it is called with \(inp"):
            estimator(f"{path}:{name}")
    with pytest.raises(ConfigError, match=r"three: it is called with \(inputs, options\)"):
        policy_loss(f"{path}:three")
    mask = torch.ones(2, 3, dtype=torch.bool)
    inputs = AdvantageInputs(
        mask=mask, rewards=torch.zeros(2, 3), scores=torch.zeros(2), group=torch.zeros(2).long()
    )
    for name, what in (("one_tensor", "a Tensor"), ("by_row", r"tensors \[\(2,\), \(2,\)\]")):
        text = rf"{name} must return \(advantages, returns\).* \(2, 3\): it returned {what}"
        with pytest.raises(ConfigError, match=text):
            compute_advantages(f"{path}:{name}", inputs)
    zeros = torch.zeros(2, 3)
    policy = PolicyLossInputs(
        logprobs=zeros, old_logprobs=zeros, advantages=zeros, mask=mask, weights=zeros
    )
    for name, what in (("only_loss", "a Tensor"), ("no_scalar", r"the shape \(2, 3\)")):
        with pytest.raises(ConfigError, match=rf"{name} must return .*{what}"):
            compute_policy_loss(f"{path}:{name}", policy, PolicyLossOptions())

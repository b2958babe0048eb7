"""Order: each prompt once per epoch, resumable anywhere. Seeds: stable and all different."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megarl.data.order import PromptOrder
from megarl.data.seeds import evaluation_seed, sample_seed, step_seeds
from megarl.errors import ConfigError


@settings(deadline=None)
@given(
    num_prompts=st.integers(1, 20),
    batch_size=st.integers(1, 30),
    seed=st.integers(0, 9),
    num_batches=st.integers(1, 6),
)
def test_every_epoch_is_a_permutation(num_prompts, batch_size, seed, num_batches):
    order = PromptOrder(num_prompts, batch_size, seed)
    dealt = [row for _ in range(num_batches) for row in order.next()]
    assert len(dealt) == num_batches * batch_size
    for start in range(0, len(dealt) - num_prompts + 1, num_prompts):
        assert sorted(dealt[start : start + num_prompts]) == list(range(num_prompts))
    assert order.epoch == len(dealt) // num_prompts


@settings(deadline=None)
@given(before=st.integers(0, 7), seed=st.integers(0, 5))
def test_a_resumed_order_deals_the_same(before, seed):
    whole, first, second = (PromptOrder(10, 4, seed) for _ in range(3))
    expected = [whole.next() for _ in range(before + 5)]
    for _ in range(before):
        first.next()
    second.load_state_dict(first.state_dict())
    assert [second.next() for _ in range(5)] == expected[before:]


def test_batch_size_may_change_at_a_resume():
    whole, first, second = PromptOrder(10, 6, 0), PromptOrder(10, 4, 0), PromptOrder(10, 2, 0)
    first.next()
    second.load_state_dict(first.state_dict())
    assert first.state_dict()["position"] == 4
    assert second.next() == whole.next()[4:]


def test_epochs_and_seeds_differ_and_order_can_be_kept():
    order = PromptOrder(50, 50, 1)
    first, second = order.next(), order.next()
    assert first != second and PromptOrder(50, 50, 2).next() != first
    assert PromptOrder(5, 7, 0, shuffle=False).next() == [0, 1, 2, 3, 4, 0, 1]


def test_the_order_is_the_same_for_ever():
    """A change here breaks every resume: it is a change of the checkpoint format."""
    assert PromptOrder(8, 8, 42).next() == [5, 0, 1, 7, 4, 6, 3, 2]
    assert sample_seed(1, 2, 3, 4) == 7050786469194492130


def test_another_data_set_or_seed_is_refused():
    state = PromptOrder(10, 4, 0).state_dict()
    with pytest.raises(ConfigError, match="num_prompts was 10 in the checkpoint and is 9 now"):
        PromptOrder(9, 4, 0).load_state_dict(state)
    with pytest.raises(ConfigError, match="seed was 0"):
        PromptOrder(10, 4, 1).load_state_dict(state)
    with pytest.raises(ConfigError, match="0 prompts"):
        PromptOrder(0, 4, 1)
    with pytest.raises(ConfigError, match="rollout_batch_size is 0"):
        PromptOrder(4, 0, 1)


def test_sample_seeds_are_63_bit_and_all_different():
    seeds = {
        sample_seed(run, step, prompt, index)
        for run in range(3)
        for step in range(10)
        for prompt in range(10)
        for index in range(10)
    }
    assert len(seeds) == 3000
    assert all(0 <= seed < 2**63 for seed in seeds) and max(seeds) > 2**62


def test_a_prompt_twice_in_a_step_gets_new_seeds():
    seeds = step_seeds(0, 5, [7, 3, 7], 2)
    assert seeds[0] == [sample_seed(0, 5, 7, 0), sample_seed(0, 5, 7, 1)]
    assert seeds[2] == [sample_seed(0, 5, 7, 2), sample_seed(0, 5, 7, 3)]
    assert len({seed for row in seeds for seed in row}) == 6


def test_seeds_of_evaluations_are_their_own():
    """Neither another sample's, nor one of training; the number is for ever, as those above."""
    places = [
        (run, prompt, index) for run in range(3) for prompt in range(10) for index in range(9)
    ]
    seeds = {evaluation_seed(*place) for place in places}
    assert len(seeds) == len(places) and all(0 <= seed < 2**63 for seed in seeds)
    training = {sample_seed(run, step, p, i) for run, p, i in places for step in range(5)}
    assert not seeds & training
    assert evaluation_seed(1, 3, 4) == 4867799509936704186

"""Built-in rewards on answers as models give them."""

from __future__ import annotations

from decimal import Decimal

import pytest

from megarl.errors import DataError
from megarl.rewards.load import load_reward
from megarl.rewards.numbers import numbers_in, only_number
from megarl.types import Prompt


def prompt_of(label="", **extra):
    return Prompt(7, (1,), "q", label, "unit", extra)


def score_one(reward, label, response):
    return reward([prompt_of(label)], [response])[0]


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("7-3=4", "7 3 4"),
        ("-5", "-5"),
        ("x=-3.50, 1,234,567.5 and .5", "-3.50 1234567.5 0.5"),
        ("It is 12.", "12"),
        ("12,3456 or 1,2,3", "12 3456 1 2 3"),
        ("a1 b2", ""),
        ("$72 (8)-2", "72 8 2"),
        ("\u22124", "-4"),
        ("#### 72", "72"),
    ],
)
def test_numbers_in(text, numbers):
    assert numbers_in(text) == [Decimal(n) for n in numbers.split()]


def test_only_number():
    assert only_number(" -3. ") == -3
    assert only_number("1,000") == 1000
    for text in ("", "?", "3 apples", "3 4", "3..", "1,00"):
        assert only_number(text) is None


def test_exact_match():
    reward = load_reward("exact_match")
    assert score_one(reward, "Paris", " Paris\n") == 1
    assert score_one(reward, "Paris", "paris") == 0
    assert score_one(load_reward("exact_match", case_sensitive=False), "Paris", "PARIS") == 1


@pytest.mark.parametrize("name", ["numeric_match", "number_answer"])
def test_equal_numbers_are_one_answer(name):
    read = load_reward(name).read_answer
    answers = {"It is 72": "72", "72.0": "72", "so 0,072 is 72.00.": "72", "1,200": "1200"}
    answers |= {"100": "100", "-0.0": "0", ".50": "0.5", "-3.10": "-3.1", "none": None, "": None}
    answers["1" * 40] = "1" * 40  # more digits than a Decimal rounds to
    assert {text: read(prompt_of("1"), text) for text in answers} == answers


def test_answers_that_match_exactly():
    read = load_reward("exact_match").read_answer
    assert [read(prompt_of(), text) for text in (" Paris\n", "paris", " ")] == [
        "Paris", "paris", None
    ]  # fmt: skip
    assert load_reward("exact_match", case_sensitive=False).read_answer(prompt_of(), "PARIS") == (
        "paris"
    )


def test_numeric_match_takes_the_last_number():
    reward = load_reward("numeric_match")
    assert score_one(reward, "so 9 * 8 #### 72", "First 9, then 72.0") == 1
    assert score_one(reward, "72", "72, or maybe 71") == 0
    assert score_one(reward, "72", "I do not know") == 0
    near = load_reward("numeric_match", tolerance=0.1)
    assert score_one(near, "1.0", "1.1") == 1 and score_one(near, "1.0", "1.11") == 0


def test_number_answer_pays_in_full_for_the_number_alone():
    reward = load_reward("number_answer")
    answers = {"42": 1.0, " 42.\n": 1.0, "The answer is 42": 0.2, "41 or 42?": 0.2}
    answers |= {"42 - 0 = 41": 0.0, "42, says 6 x 7": 0.0}
    answers |= {"41": 0.0, "?": 0.0, "": 0.0, "-42": 0.0, "142": 0.0}
    for response, expected in answers.items():
        assert score_one(reward, "42", response) == expected, response
    assert score_one(load_reward("number_answer", partial=0.5), "42", "it is 42") == 0.5


def test_labels_without_a_number_are_named():
    with pytest.raises(DataError, match=r"prompt_id 7 \(source 'unit'\) has label 'x'"):
        score_one(load_reward("number_answer"), "x", "3")


def test_reasoning_gym_asks_the_tasks_own_scorer():
    reasoning_gym = pytest.importorskip("reasoning_gym")
    dataset = reasoning_gym.create_dataset("chain_sum", size=2, seed=1)
    reward = load_reward("reasoning_gym")
    entries = [dataset[0], dataset[1]]
    prompts = [prompt_of(entry=entry) for entry in entries]
    right = [entry["answer"] for entry in entries]
    assert reward(prompts, [f" {right[0]}\n", "no"]) == [
        1.0,
        dataset.score_answer("no", entries[1]),
    ]
    wordy = f"it is {right[0]}"
    assert 0 < reward(prompts[:1], [wordy])[0] < 1
    assert list(reward._scorers) == ["chain_sum"]


def test_reasoning_gym_names_a_prompt_without_entry():
    pytest.importorskip("reasoning_gym")
    reward = load_reward("reasoning_gym")
    with pytest.raises(DataError, match="prompt_id 7 .*no reasoning-gym entry"):
        reward([prompt_of()], ["1"])
    entry = {"question": "", "answer": "", "metadata": {"source_dataset": "nope"}}
    with pytest.raises(DataError, match="no task 'nope'"):
        reward([prompt_of(entry=entry)], ["1"])

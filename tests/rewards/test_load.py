"""Loading a reward by name, file or entry point; each mistake is named before a run starts."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

import pytest

from megarl.errors import ConfigError
from megarl.rewards.load import load_reward
from megarl.types import Prompt

EXAMPLE = Path(__file__).parents[2] / "examples" / "reward_length.py"

SOURCE = """
from dataclasses import dataclass

@dataclass
class Scaled:
    factor: float
    def __call__(self, prompts, responses):
        return [self.factor * len(r) for r in responses]

def length(prompts, responses, *, scale=1.0):
    return [scale * len(r) for r in responses]

def one_argument(responses):
    return responses

CONSTANT = 5
"""


@pytest.fixture
def own(tmp_path):
    path = tmp_path / "own.py"
    path.write_text(SOURCE)
    return path


def test_the_example_pays_for_right_and_short():
    reward = load_reward(f"{EXAMPLE}:right_and_short", bonus=0.5)
    prompts = [Prompt(i, (1,), "2+2=", "4", "sums") for i in range(3)]
    scores = reward(prompts, ["4", "4" + "!" * 99, "5"])
    assert scores == pytest.approx([1 + 0.5 * 199 / 200, 1 + 0.5 * 0.5, 0.0])
    assert load_reward(f"{EXAMPLE}:shortness")([prompts[0]], ["x" * 300]) == [0.0]


def test_functions_and_classes_take_options(own):
    assert load_reward(f"{own}:length")([None], ["abc"]) == [3]
    assert load_reward(f"{own}:length", scale=2)([None], ["abc"]) == [6]
    assert load_reward(f"{own}:Scaled", factor=3)([None], ["abc"]) == [9]


def test_two_files_of_one_name_do_not_meet(own, tmp_path):
    other = tmp_path / "sub" / "own.py"
    other.parent.mkdir()
    other.write_text("def length(prompts, responses):\n    return [-1.0]\n")
    first, second = load_reward(f"{own}:length"), load_reward(f"{other}:length")
    assert (first([None], ["a"]), second([None], ["a"])) == ([1], [-1])


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("lenght", {}, r"has no 'lenght' \(did you mean 'length'\?\); it has: .*length"),
        ("CONSTANT", {}, "a int is no function"),
        ("one_argument", {}, r"called with \(prompts, responses\).*it takes \(responses\)"),
        ("length", {"scael": 1}, "unexpected keyword argument 'scael'"),
        ("Scaled", {}, "made with its options.*'factor'"),
    ],
)
def test_what_a_file_does_not_offer_is_named(own, name, options, message):
    with pytest.raises(ConfigError, match=message):
        load_reward(f"{own}:{name}", **options)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("x = 1\nimport no_such_package\n", "line 2 fails on import: ModuleNotFoundError.*no_such"),
        ("def f(:\n", "line 1 fails on import: SyntaxError"),
    ],
)
def test_a_file_that_fails_on_import_is_named_with_its_line(tmp_path, source, message):
    path = tmp_path / "bad.py"
    path.write_text(source)
    with pytest.raises(ConfigError, match=message) as caught:
        load_reward(f"{path}:f")
    assert caught.value.__cause__ is not None


def test_unknown_names_and_paths():
    with pytest.raises(ConfigError, match=r"'exact_mach' is unknown \(did you mean 'exact_match'"):
        load_reward("exact_mach")
    with pytest.raises(ConfigError, match=r"none/own.py is not a Python file, seen from"):
        load_reward("none/own.py:f")
    with pytest.raises(ConfigError, match="unexpected keyword argument 'partail'"):
        load_reward("number_answer", partail=0.1)


def test_entry_points(monkeypatch):
    def points(group):
        assert group == "megarl.rewards"
        return [
            importlib.metadata.EntryPoint("sorted", "builtins:sorted", group),
            importlib.metadata.EntryPoint("broken", "no_such_package:f", group),
            importlib.metadata.EntryPoint("plug", "megarl.rewards.verifiers:ExactMatch", group),
        ]

    monkeypatch.setattr(importlib.metadata, "entry_points", points)
    assert load_reward("plug")([Prompt(0, (1,), "q", "a", "s")], ["a"]) == [1.0]
    with pytest.raises(ConfigError, match="no_such_package:f cannot be loaded: ModuleNotFound"):
        load_reward("broken")
    with pytest.raises(ConfigError, match=r"did you mean 'plug'"):
        load_reward("plugg")

"""The rewards that a config may name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from megarl.rewards.code import CodeTests
from megarl.rewards.formats import JsonFormat, MultipleChoice, PatternFormat
from megarl.rewards.math_answers import MathVerify
from megarl.rewards.remote import HttpReward
from megarl.rewards.verifiers import ExactMatch, NumberAnswer, NumericMatch, ReasoningGym

BUILT_IN: dict[str, Callable[..., Any]] = {
    "exact_match": ExactMatch,
    "numeric_match": NumericMatch,
    "number_answer": NumberAnswer,
    "math_verify": MathVerify,
    "multiple_choice": MultipleChoice,
    "json_format": JsonFormat,
    "pattern_format": PatternFormat,
    "code_tests": CodeTests,
    "reasoning_gym": ReasoningGym,
    "http": HttpReward,
}
"""Name in the config -> its maker, which takes the reward's options."""

NEED_LABELS = frozenset(
    {"exact_match", "numeric_match", "number_answer", "math_verify", "multiple_choice"}
)
"""Built-in rewards that compare with the data's label."""

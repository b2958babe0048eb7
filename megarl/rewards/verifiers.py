"""Built-in rewards that compare a response with the prompt's label or task."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from megarl.errors import ConfigError, DataError
from megarl.rewards.numbers import last_number, numbers_in, only_number
from megarl.types import Prompt

Prompts = Sequence[Prompt]
Responses = Sequence[str]


@dataclass(frozen=True)
class ExactMatch:
    """1 if the response is the label, blanks around both aside; else 0."""

    case_sensitive: bool = True

    def __call__(self, prompts: Prompts, responses: Responses) -> list[float]:
        """One score per response."""
        return [
            float(self._normal(response) == self._normal(prompt.label))
            for prompt, response in zip(prompts, responses, strict=True)
        ]

    def read_answer(self, prompt: Prompt, response: str) -> str | None:
        """The response as it is compared; None for blanks."""
        return self._normal(response) or None

    def _normal(self, text: str) -> str:
        return text.strip() if self.case_sensitive else text.strip().casefold()


@dataclass(frozen=True)
class NumericMatch:
    """1 if the last number in the response is the last number in the label; else 0.

    The last one, because a model that reasons states its answer at the end; it reads GSM8K's
    labels ("... #### 72") as they are.
    """

    tolerance: float = 0.0
    """Greatest absolute difference that still counts as equal."""

    def __post_init__(self) -> None:
        _check_number("tolerance", self.tolerance)

    def check_prompts(self, prompts: Prompts) -> None:
        """DataError for the first label without a number."""
        for prompt in prompts:
            _label_number(prompt)

    def __call__(self, prompts: Prompts, responses: Responses) -> list[float]:
        """One score per response; DataError for a label without a number."""
        tolerance = Decimal(str(self.tolerance))
        scores = []
        for prompt, response in zip(prompts, responses, strict=True):
            found, right = numbers_in(response)[-1:], _label_number(prompt)
            scores.append(float(bool(found) and abs(found[0] - right) <= tolerance))
        return scores

    def read_answer(self, prompt: Prompt, response: str) -> str | None:
        """The last number."""
        return last_number(response)


@dataclass(frozen=True)
class NumberAnswer:
    """1 for the right number and nothing else, `partial` if the last number is right, else 0.

    For chat models that talk around the answer: the part shows that the number was known, and
    training then removes the talk. Numbers before the last do not count.
    """

    partial: float = 0.2

    def __post_init__(self) -> None:
        _check_number("partial", self.partial)

    def check_prompts(self, prompts: Prompts) -> None:
        """DataError for the first label without a number."""
        for prompt in prompts:
            _label_number(prompt)

    def __call__(self, prompts: Prompts, responses: Responses) -> list[float]:
        """One score per response; DataError for a label without a number."""
        return [
            self._score(_label_number(prompt), response)
            for prompt, response in zip(prompts, responses, strict=True)
        ]

    def read_answer(self, prompt: Prompt, response: str) -> str | None:
        """The last number, whatever is said around it."""
        return last_number(response)

    def _score(self, right: Decimal, response: str) -> float:
        if only_number(response) == right:
            return 1.0
        return self.partial if numbers_in(response)[-1:] == [right] else 0.0


def _check_number(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigError(f"{name} is {value!r}: give a number")


def _label_number(prompt: Prompt) -> Decimal:
    found = numbers_in(prompt.label)
    if not found:
        raise DataError(
            f"prompt_id {prompt.prompt_id} (source {prompt.source!r}) has label {prompt.label!r}, "
            "which holds no number: use exact_match, or another label column"
        )
    return found[-1]


@dataclass(frozen=True)
class ReasoningGym:
    """The score, 0 to 1, that reasoning-gym's own verifier of the task gives.

    Needs the task's entry in the data's column `entry`, as `megarl.data.tasks.write_task` writes.
    """

    _scorers: dict[str, Callable[[str, dict[str, Any]], float]] = field(
        default_factory=dict, init=False
    )

    def __call__(self, prompts: Prompts, responses: Responses) -> list[float]:
        """One score per response; DataError for a prompt without an entry."""
        return [
            self._score(prompt, response.strip())
            for prompt, response in zip(prompts, responses, strict=True)
        ]

    def check_prompts(self, prompts: Prompts) -> None:
        """DataError for the first prompt without an entry, or of an unknown task."""
        for prompt in prompts:
            self._scorer(prompt)

    def _score(self, prompt: Prompt, answer: str) -> float:
        return float(self._scorer(prompt)(answer, prompt.extra["entry"]))

    def _scorer(self, prompt: Prompt) -> Callable[[str, dict[str, Any]], float]:
        try:
            task = prompt.extra["entry"]["metadata"]["source_dataset"]
        except (KeyError, TypeError) as error:
            raise DataError(
                f"prompt_id {prompt.prompt_id} (source {prompt.source!r}) has no reasoning-gym "
                "entry: the data needs a column `entry` with question, answer and metadata"
            ) from error
        if task not in self._scorers:
            self._scorers[task] = _reasoning_gym_scorer(task)
        return self._scorers[task]


def _reasoning_gym_scorer(task: str) -> Callable[[str, dict[str, Any]], float]:
    try:
        import reasoning_gym
    except ImportError as error:
        raise ConfigError(
            "reward reasoning_gym needs reasoning-gym: pip install reasoning-gym"
        ) from error
    try:
        # Scorers look at the entry, not at the settings that made it: the defaults will do.
        scorer: Callable[[str, dict[str, Any]], float] = reasoning_gym.create_dataset(
            task, size=1, seed=0
        ).score_answer
    except ValueError as error:
        raise DataError(f"reasoning-gym has no task {task!r}: {error}") from error
    return scorer

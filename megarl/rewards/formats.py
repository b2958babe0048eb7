"""Rewards for the form of a response: a choice of several, JSON that fits a schema, a pattern."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from megarl.errors import ConfigError, DataError
from megarl.rewards.fenced import last_block
from megarl.types import Prompt

_STATED = r"(?:answer|choice|option)\s*(?:is|:)?\s*\**\s*"


@dataclass(frozen=True)
class MultipleChoice:
    """1 if the response chooses the label's letter, else 0.

    What counts is the last of: \\boxed{C}, "answer is (C)", "choice: C"; without one, the last
    letter that stands alone, as in "(C)", "C." or "C".
    """

    choices: str = "ABCDEFGH"
    """The letters that are choices, in upper case."""

    def __post_init__(self) -> None:
        if not self.choices.isalpha() or self.choices != self.choices.upper():
            raise ConfigError(f"choices is {self.choices!r}: give letters in upper case: ABCD")

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:
        """DataError for the first label that is no choice."""
        for prompt in prompts:
            if self._label(prompt) not in tuple(self.choices):
                raise DataError(
                    f"prompt_id {prompt.prompt_id} (source {prompt.source!r}) has label "
                    f"{prompt.label!r}, which is none of {', '.join(self.choices)}"
                )

    def __call__(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float]:
        """One score per response."""
        pairs = zip(prompts, responses, strict=True)
        return [float(self.chosen(text) == self._label(prompt)) for prompt, text in pairs]

    def read_answer(self, prompt: Prompt, response: str) -> str | None:
        """The letter."""
        return self.chosen(response)

    def chosen(self, response: str) -> str | None:
        """The letter that a response chooses; None for none."""
        stated, alone = self._patterns
        found = stated.findall(response) or alone.findall(response)
        if not found:
            return None
        last = found[-1]
        return (last if isinstance(last, str) else next(filter(None, last))).upper()

    @cached_property
    def _patterns(self) -> tuple[re.Pattern[str], re.Pattern[str]]:
        letters = f"[{self.choices}]"
        either = f"[{self.choices}{self.choices.lower()}]"
        boxed = rf"\\boxed\{{\s*(?:\\text\{{)?\(?({either})\)?\s*\}}"
        said = rf"(?i:{_STATED})\(?({either})\b"
        return re.compile(f"{boxed}|{said}"), re.compile(rf"(?<![\w'])\(?({letters})\b(?!['\w])")

    @staticmethod
    def _label(prompt: Prompt) -> str:
        return prompt.label.strip().strip("().").upper()


@dataclass(frozen=True)
class JsonFormat:
    """1 for JSON that fits the schema, `partial` for other JSON, else 0.

    The JSON is the response, or its last fenced block. The schema is the prompt's column `schema`,
    where it has one, or the option.
    """

    schema: Mapping[str, Any] | None = None
    partial: float = 0.0
    _validators: dict[str, Any] = field(default_factory=dict, init=False)

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:
        """DataError for the first prompt without a schema that is one."""
        for prompt in prompts:
            self._validator(prompt)

    def __call__(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float]:
        """One score per response."""
        return [self._score(p, text) for p, text in zip(prompts, responses, strict=True)]

    def _score(self, prompt: Prompt, response: str) -> float:
        try:
            value = json.loads(last_block(response, "json"))
        except (ValueError, RecursionError):
            return 0.0
        return 1.0 if self._validator(prompt).is_valid(value) else self.partial

    def _validator(self, prompt: Prompt) -> Any:
        try:
            from jsonschema import SchemaError
            from jsonschema.validators import validator_for
        except ImportError as error:
            raise ConfigError(
                "reward json_format needs jsonschema: pip install jsonschema"
            ) from error
        schema = prompt.extra.get("schema", self.schema)
        schema = json.loads(schema) if isinstance(schema, str) else schema
        where = f"prompt_id {prompt.prompt_id} (source {prompt.source!r})"
        if not isinstance(schema, Mapping):
            raise DataError(
                f"{where}: there is no JSON schema in column `schema` or in the options"
            )
        key = json.dumps(schema, sort_keys=True)
        if key not in self._validators:
            kind = validator_for(schema)
            try:
                kind.check_schema(schema)
            except SchemaError as error:
                raise DataError(f"{where}: the schema is none: {error.message}") from None
            self._validators[key] = kind(schema)
        return self._validators[key]


@dataclass(frozen=True)
class PatternFormat:
    """1 if the whole response has the form of a regular expression, else 0.

    Such as r"<think>.*</think>\\s*<answer>.*</answer>"; a dot matches ends of lines too.
    """

    pattern: str

    def __post_init__(self) -> None:
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise ConfigError(
                f"pattern {self.pattern!r} is no regular expression: {error}"
            ) from None

    def __call__(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float]:
        """One score per response."""
        form = re.compile(self.pattern, re.DOTALL)
        return [float(form.fullmatch(response.strip()) is not None) for response in responses]

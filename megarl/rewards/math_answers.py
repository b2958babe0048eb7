"""Math answers by `math-verify`: 1/2, 0.5 and \\frac{1}{2} are the same."""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from megarl.errors import ConfigError, DataError
from megarl.rewards.workers import Workers
from megarl.types import Prompt

_LOG = logging.getLogger("megarl.rewards")


@dataclass(frozen=True)
class MathVerify:
    """1 if the response states the label's value, else 0.

    The label is a number, LaTeX, a set, an interval, ... or ends with "#### 72", as GSM8K's do; in
    the response \\boxed{} and "the answer is" come first. Answers are compared in processes of
    their own: one that takes longer than `time_s` (sympy can be made to think for ever) is ended
    and counts as wrong.
    """

    time_s: float = 5.0
    workers: int = 0
    """Processes; 0: one for each processor, at most 4."""
    _workers: Workers = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        count = self.workers or min(os.cpu_count() or 1, 4)
        workers = Workers("megarl.rewards.math_compare", count, self.time_s)
        object.__setattr__(self, "_workers", workers)

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:
        """DataError for the first label without a value."""
        readable = self._ask([{"label": prompt.label} for prompt in prompts], "no value")
        for prompt, right in zip(prompts, readable, strict=True):
            if not right:
                raise DataError(
                    f"prompt_id {prompt.prompt_id} (source {prompt.source!r}) has label "
                    f"{prompt.label!r}, in which math-verify finds no value: use exact_match, or "
                    "another label column"
                )

    def __call__(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float]:
        """One score per response."""
        pairs = zip(prompts, responses, strict=True)
        questions = [{"label": p.label, "response": text} for p, text in pairs]
        return [float(bool(answer)) for answer in self._ask(questions, "wrong")]

    def read_answer(self, prompt: Prompt, response: str) -> str | None:
        """The value that the response states, simplified; None for none, and where it is late."""
        found: str | None = self._ask([{"response": response}], "no answer")[0]
        return found or None

    def close(self) -> None:
        """End the processes; the next call starts others."""
        self._workers.close()

    def _ask(self, questions: Sequence[dict[str, str]], late_is: str) -> list[Any]:
        """The workers' answers; None, which a warning calls `late_is`, where one was too late."""
        if importlib.util.find_spec("math_verify") is None:
            raise ConfigError("reward math_verify needs math-verify: pip install math-verify")
        answers = self._workers.ask(questions)
        if late := answers.count(None):
            _LOG.warning("math_verify: %d answers took over %g s: %s", late, self.time_s, late_is)
        return answers

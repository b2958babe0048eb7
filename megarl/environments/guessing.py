"""A game of several turns: find a number that the environment keeps to itself."""

from __future__ import annotations

import random
import re

from megarl.environments.base import Reply
from megarl.types import Prompt


class GuessingGame:
    """The number is between `low` and `high`; to each guess the answer is too low, or too high.

    1 for the number, less `cost` for each guess before it; an episode without it is worth 0, and
    `nonsense` is added for a turn without a number of the range.
    """

    def __init__(
        self,
        low: int = 0,
        high: int = 9,
        cost: float = 0.1,
        nonsense: float = -0.1,
        too_low: str = " <",
        too_high: str = " >",
    ) -> None:
        """too_low, too_high: what the model reads; it goes on behind it."""
        if not low < high:
            raise ValueError(f"low {low} is not below high {high}")
        self._low, self._high, self._cost, self._nonsense = low, high, cost, nonsense
        self._words = too_low, too_high
        self._number, self._guesses = low, 0

    def reset(self, prompt: Prompt, seed: int) -> str:
        """See Environment; the number is the prompt's label, or by chance where it has none."""
        label = prompt.label.strip()
        dice = random.Random(f"{prompt.prompt_id}-{seed}")
        self._number = int(label) if label else dice.randint(self._low, self._high)
        self._guesses = 0
        return ""

    def step(self, text: str) -> Reply:
        """See Environment."""
        found = re.search(r"\d+", text)
        guess = int(found.group()) if found else None
        if guess is None or not self._low <= guess <= self._high:
            return Reply("", self._nonsense, done=True)
        if guess == self._number:
            return Reply("", 1.0 - self._cost * self._guesses, done=True)
        self._guesses += 1
        return Reply(self._words[guess > self._number])

"""What an environment is."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from megarl.types import Prompt


class Reply(NamedTuple):
    """What an environment answers to a turn of the model's."""

    observation: str = ""
    """What the model reads next; its own text, with all marks of a chat that it needs."""
    reward: float = 0.0
    """Of this turn; an episode is worth the sum."""
    done: bool = False
    """Whether the episode ends here: the observation is not read then."""


class Environment(Protocol):
    """One episode; thousands are open at once, each called by one thread at a time.

    A class of this form is named by `environment.function`; it is made with `environment.kwargs`.
    """

    def reset(self, prompt: Prompt, seed: int) -> str:
        """Begin; what the model reads after the prompt, before its first turn: mostly nothing."""
        ...

    def step(self, text: str) -> Reply:
        """The answer to a turn, its special tokens left out."""
        ...

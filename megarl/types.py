"""What travels between the parts: prompts, rollouts, and the rows of a training batch.

Shape legend: N rows of the whole step, n rows owned by one rank, S tokens of a padded sequence
(prompt then response, right-padded), R response tokens (right-padded).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt of the data set, tokenized."""

    prompt_id: int
    """Row in the data set: stable over epochs and layouts."""
    token_ids: tuple[int, ...]
    text: str
    """What the model reads, after the chat template."""
    label: str
    """The reference answer; empty where the data set has none."""
    source: str
    """Name of the data source, for per-source metrics."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """What a verifier needs besides the label (a reasoning-gym entry, say)."""
    question: str = ""
    """For people: the last message of a chat; empty where text says it all."""


@dataclass(frozen=True, slots=True)
class SamplingSpec:
    """How one batch of rollouts is sampled."""

    temperature: float = 1.0
    """0 is greedy."""
    top_p: float = 1.0
    top_k: int = -1
    max_response_length: int = 16
    """Tokens, at most."""
    stop_token_ids: tuple[int, ...] = ()

    def greedy(self) -> SamplingSpec:
        """The same lengths and ends, with the likeliest token each time."""
        return replace(self, temperature=0.0, top_p=1.0, top_k=-1)


@dataclass(frozen=True, slots=True)
class RolloutRequest:
    """One sample to be generated."""

    row: int
    """Global row id within the step."""
    group: int
    """The prompt's position within the step: samples of one prompt share it."""
    prompt: Prompt
    seed: int
    """63-bit seed of this sample alone: a hash of run seed, step, prompt id, sample index."""


@dataclass(frozen=True, slots=True)
class Rollout:
    """One generated sample."""

    request: RolloutRequest
    response_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    """Natural log-probability of each response token, after temperature."""
    text: str
    """The decoded response, special tokens dropped."""
    finish_reason: str
    """"stop" (ended by itself) or "length" (cut off)."""
    weight_version: int
    """The sync that delivered the weights that made this sample; the oldest, where several did."""
    versions: tuple[tuple[int, int], ...] = ()
    """(version, response tokens that its weights made), in order; () where one made all."""

    learned: tuple[bool, ...] = ()
    """Of each response token, whether the model made it: what an environment or a tool said is read
    and not learned; () where it made all."""
    reward: float | None = None
    """What an environment gave for the whole episode; None without one."""

    @property
    def spans(self) -> tuple[tuple[int, int], ...]:
        """The same, never empty."""
        return self.versions or ((self.weight_version, len(self.response_ids)),)


@dataclass(frozen=True, slots=True)
class RowTable:
    """Per-row scalars of a step, equal on all ranks; [N] each, in row order."""

    group: Tensor
    """int32."""
    prompt_length: Tensor
    """int32, tokens."""
    response_length: Tensor
    """int32, tokens."""
    reward: Tensor
    """float32, the task's score of the whole response."""
    finished: Tensor
    """bool: the response ended by itself."""
    weight_version: Tensor
    """int32."""
    source: tuple[str, ...]
    right: Tensor | None = None
    """bool: the verifier calls it a success; None without a verifier."""
    parts: Mapping[str, Tensor] = field(default_factory=dict)
    """What each reward said by itself, float32 [N], where `reward` is of several."""
    learned_length: Tensor | None = None
    """int32: response tokens that the model made; None: all."""
    baseline: Tensor | None = None
    """float32: reward of the prompt's greedy answer, where one was sampled."""

    def __len__(self) -> int:
        return self.group.numel()

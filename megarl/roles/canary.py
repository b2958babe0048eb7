"""The canary: log-probs of a fixed text on both engines after a sync, and how they changed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from megarl.errors import VerificationError
from megarl.mesh.control import Control
from megarl.roles.actor import Actor, sequence_logprobs
from megarl.roles.rollout import RolloutRole

CANARY_LIMIT = {torch.float32: 1e-3, torch.bfloat16: 1.5}
"""Largest difference of one canary log-prob, nats. In bf16 two attention kernels differ by up to
about 1 on the same weights: there the canary sees only gross errors. What did not arrive, or not in
its place, the digests see in any type."""


@dataclass(frozen=True, slots=True)
class CanaryText:
    """A fixed text whose log-probs both engines must agree on."""

    token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class CanaryReport:
    """What the canary said after a sync; nats, the largest over its tokens and all replicas."""

    diff: float = 0.0
    """Between the two engines."""
    actor_change: float = 0.0
    """Of the actor, since the sync before; 0 at the first."""
    rollout_change: float = 0.0
    """Of the rollout engines, since the sync before: as large as the actor's where it arrived."""


class Canary:
    """Sings after every sync; `report` is what it said last."""

    def __init__(self, control: Control, actor: Actor, rollout: RolloutRole, limit: float) -> None:
        """limit: largest difference of one log-prob between the engines, nats."""
        self._control, self._actor, self._rollout, self._limit = control, actor, rollout, limit
        self._before: list[tuple[list[float], list[float]]] = []
        self.report = CanaryReport()

    def state_dict(self) -> list[Any]:
        """Log-probs after the last sync, on the actor and each replica."""
        return self._before

    def load_state_dict(self, state: list[Any]) -> None:
        """Compare the next sync with what was seen before it."""
        self._before = [(list(ours), list(theirs)) for ours, theirs in state]

    def check(self, text: CanaryText, version: int) -> None:
        """Ask both engines, on all ranks together; VerificationError where they differ too much."""
        ours, theirs = sequence_logprobs(self._actor, text.token_ids), list[list[float]]()
        if self._rollout.here:
            theirs = self._rollout.engine.prompt_logprobs(text.token_ids)
        answers = self._control.gather((ours, theirs if self._rollout.is_lead else []))
        reference = next(list(a) for a, _ in answers if a is not None)
        for rank, (_, replicas) in enumerate(answers):
            for seen in replicas:
                self._compare(seen, reference, f"weight sync {version}: vLLM on rank {rank}")
        after = [(reference, list(seen)) for _, replicas in answers for seen in replicas]
        before = self._before or after
        if len(before) != len(after):  # servers came or went: all said the same before
            before = [before[0]] * len(after)
        self.report = CanaryReport(
            diff=max(_largest(*pair) for pair in after),
            actor_change=_largest(before[0][0], reference),
            rollout_change=max(
                _largest(old, new) for (_, old), (_, new) in zip(before, after, strict=True)
            ),
        )
        self._before = after

    def _compare(self, seen: Sequence[float], reference: Sequence[float], who: str) -> None:
        for index, (value, expected) in enumerate(zip(seen, reference, strict=True)):
            if not abs(value - expected) <= self._limit:
                raise VerificationError(
                    f"{who} gives token {index + 1} of the canary log-prob {value:.6f}, the actor "
                    f"{expected:.6f}"
                )


def _largest(one: Sequence[float], other: Sequence[float]) -> float:
    return max(abs(a - b) for a, b in zip(one, other, strict=True))

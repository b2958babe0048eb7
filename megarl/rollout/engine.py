"""The contract of a rollout engine, and `generate`, the batch helper on top of it.

Who calls what: the rollout role owns one engine per rank. The ranks of a replica hold one model
together; its lead admits requests and the others follow, so `submit` counts on the lead only,
while `step` is collective over the replica: every rank calls it, the same number of times. Rollouts
come out of `poll` on every rank of the replica.

A `ResidentEngine` has its weights in this process: they are written in place between two
generations, and are used after `commit`, never half-written ones: `submit` raises while a write is
open. The weights of vLLM servers go another way (`megarl.transfer`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, runtime_checkable

from torch import Tensor

from megarl.layout import Recording
from megarl.types import Rollout, RolloutRequest, SamplingSpec

NOT_COMMITTED = (
    "rollout: generation was asked for before the weight sync committed: the engine's weights are "
    "half-written, or aliased to the actor's, which have changed since"
)


class TurnEngine(Protocol):
    """What makes rollouts of requests."""

    def submit(
        self, requests: Sequence[RolloutRequest], sampling: SamplingSpec, *, more: bool = False
    ) -> None:
        """Admit requests (lead only; ignored elsewhere).

        `more` False promises that nothing is submitted or aborted before all are finished, which
        spares an exchange per step. Raises RunError, naming the sample, for a prompt the engine
        refuses, while a weight write is open, and while aliased weights are dirty.
        """
        ...

    def step(self) -> bool:
        """Advance by one engine step (collective over the replica); False when nothing is left."""
        ...

    def poll(self) -> list[Rollout]:
        """Rollouts that finished since the last poll, in order of their rows."""
        ...

    def abort(self, rows: Sequence[int] | None = None) -> None:
        """Drop requests (all, or those rows; lead only) that are unfinished; they never come out.

        Servers drop finished ones that were not polled, too.
        """
        ...

    def look(self) -> None:
        """Take in what has come by itself, without waiting; only servers' does."""
        ...

    def wake(self) -> None:
        """Have a step that waits return; called in any thread. Only servers' steps wait."""
        ...


class RolloutEngine(TurnEngine, Protocol):
    """One replica's engine on one rank."""

    weight_version: int
    """Version of the weights in use; it rides on every rollout."""

    def sleep(self) -> None:
        """Give memory back until the next weight sync, where the engine can and was told to.

        Weights are forgotten. Raises RunError while requests are in flight.
        """
        ...

    def prompt_logprobs(self, token_ids: Sequence[int]) -> list[list[float]]:
        """Log-probability of each token after the first, temperature 1 (collective).

        By replica: those that this rank answers for, which are several for servers.
        """
        ...

    def take_metrics(self) -> dict[str, float]:
        """What it counts for the step's metrics, since it was asked last; {} for most."""
        ...

    def close(self) -> None:
        """Free the engine; nothing may be called after."""
        ...


@runtime_checkable
class ResidentEngine(RolloutEngine, Protocol):
    """One that holds its weights, or a rank's part of them, in this process."""

    def begin_load(self) -> Mapping[str, Tensor]:
        """Open a weight write: the live parameters by vLLM's names, to be written in place.

        Raises RunError while requests are in flight.
        """
        ...

    def record_loaders(self, tensors: Mapping[str, tuple[int, ...]]) -> Recording | None:
        """Where the engine's own loaders put full tensors of these shapes, while a write is open.

        None: it has no loaders that could say so.
        """
        ...

    def alias(self, views: Mapping[str, Tensor]) -> frozenset[str]:
        """Compute with these tensors in place of parameters from now on, while a write is open.

        They are somebody else's, who calls `mark_dirty` before writing to them. Returns the names
        of those that the engine could take.
        """
        ...

    def mark_dirty(self) -> None:
        """Refuse to generate until the next commit: aliased weights are about to change.

        Raises RunError while requests are in flight.
        """
        ...

    def load_full(self, name: str, tensor: Tensor) -> None:
        """Load one full tensor by the engine's own loader, while a write is open."""
        ...

    def commit(self, version: int) -> None:
        """Close the write: re-process what the engine packs, drop every cached prefix."""
        ...


def generate(
    engine: TurnEngine,
    batches: Sequence[tuple[Sequence[RolloutRequest], SamplingSpec]],
    on_finished: Callable[[Sequence[Rollout]], None] | None = None,
) -> list[Rollout]:
    """Finish all requests: submit, step until nothing is left, return rollouts in order of rows.

    batches: requests, and how they are sampled; rows differ over all. on_finished hears of the
    rollouts that a step finished, where it finished any.
    """
    for index, (requests, sampling) in enumerate(batches):
        engine.submit(requests, sampling, more=index < len(batches) - 1)
    finished: list[Rollout] = []
    more = True
    while more:
        more = engine.step()
        new = engine.poll()
        finished += new
        if on_finished is not None and new:
            on_finished(new)
    return sorted(finished, key=lambda rollout: rollout.request.row)

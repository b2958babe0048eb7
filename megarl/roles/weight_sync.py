"""Actor -> rollout: the plan between their placements, its execution, and the proof of arrival.

A sync is: open the write, reshard, close it (re-pack, drop cached prefixes), advance the version.
Proofs: a digest of every region of every vLLM parameter against its sender's; the engine's own
check that layers were re-packed and the prefix cache is empty; the version on every sample; and a
canary, the log-probs of a fixed text on both engines, and how they changed since the sync before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from megarl import native
from megarl.errors import VerificationError
from megarl.layout import ModelShape, Plan, hf_tensors
from megarl.mesh.control import Control
from megarl.mesh.universe import Universe
from megarl.models.engine import layernorm_names
from megarl.reshard.checks import check_loaders, check_parameters, check_same_plan
from megarl.reshard.executor import Resharder, SyncReport
from megarl.reshard.placements import actor_placements, rollout_placements
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


class WeightSync:
    """Binds the actor's parameters to the rollout engines'; `run` after every update."""

    def __init__(
        self,
        universe: Universe,
        control: Control,
        shape: ModelShape,
        actor: Actor,
        rollout: RolloutRole,
        *,
        wire_dtype: torch.dtype,
        buffer_bytes: int,
        overlap: bool = True,
        verify_interval: int,
        canary: CanaryText | None,
        canary_limit: float,
    ) -> None:
        self._universe, self._control = universe, control
        self._actor, self._rollout = actor, rollout
        self._wire, self._buffer_bytes, self._overlap = wire_dtype, buffer_bytes, overlap
        self._verify_interval, self._canary = verify_interval, canary
        self._canary_limit = canary_limit
        self.plan: Plan = self._make_plan(shape)
        self._resharder: Resharder | None = None
        self._shape = shape
        self.version = 0
        """The actor's weight version that the engines have; 0 before the first sync."""
        self.canary_report = CanaryReport()
        self._canary_before: list[tuple[list[float], list[float]]] = []
        self._syncs = 0

    def run(self) -> SyncReport:
        """Bring the actor's weights to every rollout engine and prove that they arrived."""
        engine = self._rollout.engine if self._rollout.here else None
        live = dict(engine.begin_load()) if engine else {}
        if self._resharder is None:
            self._check_parameters(live)
            self._resharder = Resharder(
                self._universe,
                self.plan,
                self._actor.engine.parameters() if self._actor.here else {},
                live,
                wire_dtype=self._wire,
                buffer_bytes=self._buffer_bytes,
                overlap=self._overlap,
            )
        due = self._verify_interval > 0 and self._syncs % self._verify_interval == 0
        report = self._move(self._resharder, due)
        self._syncs += 1
        self.version = self._actor.weight_version
        if engine:
            engine.commit(self.version)
        if self._canary is not None:
            self._check_canary(self._canary)
        return report

    def _move(self, resharder: Resharder, verify: bool) -> SyncReport:
        """Nobody goes on, and nobody generates, before all ranks have verified."""
        report, problem = None, None
        try:
            report = resharder.run(verify=verify)
        except VerificationError as error:
            problem = str(error)
        for found in self._control.gather(problem):
            if found is not None:
                raise VerificationError(found)
        assert report is not None
        return report

    def _make_plan(self, shape: ModelShape) -> Plan:
        actor, rollout = self._actor, self._rollout
        sources = actor_placements(shape, actor.layout, actor.pool.ranks, layernorm_names())
        destinations = rollout_placements(shape, rollout.replica, rollout.pool.ranks)
        return native.plan(
            sources,
            destinations,
            node_of=self._universe.node_of.__getitem__,
            rank=self._universe.rank,
        )

    def _check_parameters(self, live: dict[str, torch.Tensor]) -> None:
        check_same_plan(self._control.gather(self.plan.digest()))
        if not self._rollout.here:
            return
        index = self._rollout.pool.ranks.index(self._universe.rank)
        slice_ = self._rollout.replica.slice_of(index)
        check_parameters(self._shape, slice_, live)
        recorded = self._rollout.engine.recorded_placement(hf_tensors(self._shape))
        check_loaders(self._shape, slice_, recorded)

    def _check_canary(self, canary: CanaryText) -> None:
        ours, theirs = sequence_logprobs(self._actor, canary.token_ids), None
        if self._rollout.here:
            theirs = self._rollout.engine.prompt_logprobs(canary.token_ids)
        answers = self._control.gather((ours, theirs if self._rollout.is_lead else None))
        reference = next(list(a) for a, _ in answers if a is not None)
        for rank, (_, seen) in enumerate(answers):
            for index, value in enumerate(seen or []):
                if not abs(value - reference[index]) <= self._canary_limit:
                    raise VerificationError(
                        f"weight sync {self.version}: vLLM on rank {rank} gives token {index + 1} "
                        f"of the canary log-prob {value:.6f}, the actor {reference[index]:.6f}"
                    )
        after = [(reference, list(seen)) for _, seen in answers if seen is not None]
        before = self._canary_before or after
        self.canary_report = CanaryReport(
            diff=max(_largest(*pair) for pair in after),
            actor_change=_largest(before[0][0], reference),
            rollout_change=max(
                _largest(old, new) for (_, old), (_, new) in zip(before, after, strict=True)
            ),
        )
        self._canary_before = after


def _largest(one: Sequence[float], other: Sequence[float]) -> float:
    return max(abs(a - b) for a, b in zip(one, other, strict=True))

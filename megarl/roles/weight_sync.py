"""Actor -> rollout: the plan between their placements, its execution, and the proof of arrival.

A sync is: open the write, reshard, close it (re-pack, drop cached prefixes), advance the version.
Proofs: a digest of every region of every vLLM parameter against its sender's; the engine's own
check that layers were re-packed and the prefix cache is empty; the version on every sample; and a
canary, the log-probs of a fixed text on both engines, and how they changed since the sync before.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from megarl import native
from megarl.errors import PlanError, VerificationError
from megarl.layout import ModelShape, Placement, Plan, hf_tensors
from megarl.mesh.control import Control
from megarl.mesh.universe import Universe
from megarl.models.engine import layernorm_names
from megarl.reshard.checks import check_destination, check_same_plan
from megarl.reshard.executor import Resharder, SyncReport
from megarl.reshard.in_place import check_addresses, views_for
from megarl.reshard.indirect import IndirectLoads, without
from megarl.reshard.placements import actor_placements, rollout_placements
from megarl.roles.actor import Actor
from megarl.roles.canary import CANARY_LIMIT, Canary, CanaryText
from megarl.roles.rollout import RolloutRole


@dataclass(frozen=True, slots=True)
class SyncSettings:
    """How weights travel, and what proves that they arrived."""

    wire_dtype: torch.dtype
    buffer_bytes: int
    """Of all send and receive buffers together."""
    overlap: bool = True
    verify_interval: int = 1
    """Syncs between two comparisons of all digests; 0 is never."""
    strict: bool = False
    """Refuse tensors that only the engine's own loaders can place."""
    alias: bool = False
    """Let the engines compute with the actor's own parameters where a rank holds what it needs."""
    canary: CanaryText | None = None
    canary_limit: float = CANARY_LIMIT[torch.float32]


class WeightSync:
    """Binds the actor's parameters to the rollout engines'; `run` after every update."""

    def __init__(
        self,
        universe: Universe,
        control: Control,
        shape: ModelShape,
        actor: Actor,
        rollout: RolloutRole,
        settings: SyncSettings,
    ) -> None:
        """Opens the engine's weights for the first `run`.

        Raises PlanError, on all ranks, where the engine's parameters or loaders are not those that
        the layout tables know, or ranks made different plans.
        """
        self._universe, self._control, self._settings = universe, control, settings
        self._actor, self._rollout = actor, rollout
        live = dict(rollout.resident.begin_load()) if rollout.here else {}
        self.indirect = self._inspect(shape, live)
        """Tensors that only the engine's own loaders can place, and what those do."""
        self.plan: Plan = self._make_plan(shape)
        self.aliased = self._alias(shape, live) if settings.alias else frozenset[str]()
        """This rank's rollout parameters that are views of the actor's."""
        live = dict(rollout.resident.begin_load()) if rollout.here else {}
        self._bound = self._live_actor(), live
        self._resharder = Resharder(
            universe,
            self.plan,
            *self._bound,
            wire_dtype=settings.wire_dtype,
            buffer_bytes=settings.buffer_bytes,
            overlap=settings.overlap,
            in_place=self.aliased,
        )
        self._indirect_loads = self._make_indirect_loads(shape) if self.indirect else None
        self.version = 0
        """The actor's weight version that the engines have; 0 before the first sync."""
        self.canary = Canary(control, actor, rollout, settings.canary_limit)
        self._syncs = 0

    def run(self) -> SyncReport:
        """Bring the actor's weights to every rollout engine and prove that they arrived."""
        engine = self._rollout.resident if self._rollout.here else None
        if engine:
            check_addresses("vLLM", self._bound[1], engine.begin_load())
        check_addresses("the actor", self._bound[0], self._live_actor())
        interval = self._settings.verify_interval
        report = self._move(verify=interval > 0 and self._syncs % interval == 0)
        self._syncs += 1
        if engine:
            engine.commit(self._actor.weight_version)
        self.version = self._actor.weight_version
        if self._settings.canary is not None:
            self.canary.check(self._settings.canary, self.version)
        return report

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps, so that syncs after it report what they would have."""
        return {"syncs": self._syncs, "canary": self.canary.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on: the next `run` brings the restored weights, as the last one before did."""
        self._syncs = state["syncs"] - 1
        self.canary.load_state_dict(state["canary"])

    def text(self) -> str:
        """The plan of this rank, and what goes outside it, for people."""
        aliased = "".join(f"  {name}\n" for name in sorted(self.aliased))
        indirect = "".join(f"  {name}: its loader {it}\n" for name, it in self.indirect.items())
        parts = {
            "parameters that are views of the actor's, and are not moved": aliased,
            "tensors that the engine's own loaders place, gathered whole": indirect,
        }
        return "".join(f"{head}:\n{some}\n" for head, some in parts.items() if some) + (
            self.plan.text()
        )

    def _move(self, verify: bool) -> SyncReport:
        """Nobody goes on, and nobody generates, before all ranks have verified."""
        report, problem, received = None, None, 0
        try:
            report = self._resharder.run(verify=verify)
        except VerificationError as error:
            problem = str(error)
        try:  # in any case: the other ranks do
            received = self._indirect_loads.run(verify) if self._indirect_loads else 0
        except VerificationError as error:
            problem = problem or str(error)
        for found in self._control.gather(problem):
            if found is not None:
                raise VerificationError(found)
        assert report is not None
        return replace(report, bytes_indirect=received)

    def _inspect(self, shape: ModelShape, live: Mapping[str, Tensor]) -> dict[str, str]:
        """Tensors that some rank's loaders must place; PlanError on all ranks for what is odd."""
        found, problem = dict[str, str](), None
        if self._rollout.here:
            index = self._rollout.pool.ranks.index(self._universe.rank)
            recording = self._rollout.resident.record_loaders(hf_tensors(shape))
            slice_ = self._rollout.replica.slice_of(index)
            try:
                found = dict(
                    check_destination(shape, slice_, live, recording, self._settings.wire_dtype)
                )
            except PlanError as error:
                problem = str(error)
        answers = self._control.gather((problem, found))
        for problem, _ in answers:
            if problem is not None:
                raise PlanError(problem)
        indirect = {name: what for _, some in answers for name, what in some.items()}
        if indirect and self._settings.strict:
            name = next(iter(indirect))
            raise PlanError(
                f"weight_sync.strict: vLLM's loader of {name} {indirect[name]}, so that its place "
                f"is not known ({len(indirect)} such tensors); weight_sync.strict=false gathers "
                "them whole and has that loader place them"
            )
        return indirect

    def _alias(self, shape: ModelShape, live: Mapping[str, Tensor]) -> frozenset[str]:
        """Make what this rank holds already views of the actor's; nobody trains while they run."""
        actor, rollout = self._actor, self._rollout
        taken: frozenset[str] = frozenset()
        if actor.here and rollout.here:
            rank = self._universe.rank
            held = self._sources(shape, padded_vocab=True)[rank]
            needed = rollout_placements(shape, rollout.replica, rollout.pool.ranks)[rank]
            views = views_for(held, needed, self._live_actor(), live, self.indirect)
            taken = rollout.resident.alias(views)
        if any(self._control.gather(bool(taken))) and actor.here and rollout.here:
            actor.engine.on_write.append(rollout.resident.mark_dirty)
        return taken

    def _live_actor(self) -> dict[str, Tensor]:
        return self._actor.engine.parameters() if self._actor.here else {}

    def _make_plan(self, shape: ModelShape) -> Plan:
        rollout = self._rollout
        needed = rollout_placements(shape, rollout.replica, rollout.pool.ranks)
        plan = native.plan(
            self._sources(shape, padded_vocab=True),
            without(needed, tuple(self.indirect)),
            node_of=self._universe.node_of.__getitem__,
            rank=self._universe.rank,
        )
        check_same_plan(self._control.gather(plan.digest()))
        return plan

    def _make_indirect_loads(self, shape: ModelShape) -> IndirectLoads:
        return IndirectLoads(
            self._universe,
            shape,
            tuple(self.indirect),
            self._sources(shape, padded_vocab=False),
            self._rollout.pool.ranks,
            self._live_actor(),
            self._rollout.resident.load_full if self._rollout.here else None,
            buffer_bytes=self._settings.buffer_bytes,
            buffers=self._resharder.buffers,
        )

    def _sources(self, shape: ModelShape, *, padded_vocab: bool) -> dict[int, Placement]:
        actor = self._actor
        return actor_placements(
            shape, actor.layout, actor.pool.ranks, layernorm_names(), padded_vocab=padded_vocab
        )

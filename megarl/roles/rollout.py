"""The rollout role: replicas of an engine, each serving a share of the step's prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from megarl.environments.episodes import EpisodeEngine, EpisodeSettings
from megarl.layout import ReplicaLayout
from megarl.mesh.universe import Pool, Universe
from megarl.rollout.engine import ResidentEngine, RolloutEngine, generate
from megarl.types import Rollout, RolloutRequest, SamplingSpec

if TYPE_CHECKING:
    from megarl.rollout.servers.engine import ServerEngine


class RolloutRole:
    """All replicas; `engine` is this rank's part of one, None on ranks without the role."""

    def __init__(
        self,
        universe: Universe,
        pool: Pool,
        replica: ReplicaLayout,
        engine: RolloutEngine | None,
        episodes: EpisodeSettings | None = None,
    ) -> None:
        """episodes: of several turns, where an environment answers; on replicas of one rank."""
        self.pool, self.replica = pool, replica
        self._engine, self._episodes = engine, episodes
        self._rank = pool.ranks.index(universe.rank) if universe.rank in pool.ranks else -1

    @property
    def here(self) -> bool:
        """Whether this rank holds a part of a replica."""
        return self._engine is not None

    @property
    def engine(self) -> RolloutEngine:
        """This rank's engine; only where `here`."""
        assert self._engine is not None
        return self._engine

    @property
    def resident(self) -> ResidentEngine:
        """The same, where its weights are in this process."""
        engine = self.engine
        assert isinstance(engine, ResidentEngine)
        return engine

    @property
    def servers(self) -> ServerEngine:
        """The same, where it asks servers."""
        from megarl.rollout.servers.engine import ServerEngine

        engine = self.engine
        assert isinstance(engine, ServerEngine)
        return engine

    @property
    def num_replicas(self) -> int:
        """Copies of the model that generate side by side."""
        return len(self.pool.ranks) // self.replica.size

    @property
    def is_lead(self) -> bool:
        """Whether this rank's rollouts count: the first of its replica."""
        return self.here and self.replica.place_of(self._rank) == 0

    def lead_of(self, group: int) -> int:
        """Universe rank that answers for a group of samples; groups are dealt in turn."""
        return self.pool.ranks[self.replica.members(group % self.num_replicas)[0]]

    def take_metrics(self) -> dict[str, float]:
        """What this rank's engine counts, since it was asked last."""
        return self.engine.take_metrics() if self.here else {}

    def sleep(self) -> None:
        """Nothing is generated before the next weight sync: engines may give their memory back."""
        if self.here:
            self.engine.sleep()

    def generate(
        self,
        requests: Sequence[RolloutRequest],
        sampling: SamplingSpec,
        on_finished: Callable[[Sequence[Rollout]], None] | None = None,
        *,
        greedy: Sequence[RolloutRequest] = (),
    ) -> list[Rollout]:
        """Rollouts of the requests whose groups this replica serves; [] except on its lead.

        on_finished hears, on the lead, of the rollouts that a step finished, where it finished any.
        greedy: further requests, whose likeliest tokens are taken; their rows are others'.
        """
        if not self.here:
            return []
        batches = [(self._mine(requests), sampling), (self._mine(greedy), sampling.greedy())]
        hears = on_finished if self.is_lead else None
        if self._episodes is None:
            rollouts = generate(self.engine, batches if greedy else batches[:1], hears)
            return rollouts if self.is_lead else []
        with EpisodeEngine(self.engine, self._episodes) as engine:
            return generate(engine, batches if greedy else batches[:1], hears)

    def _mine(self, requests: Sequence[RolloutRequest]) -> list[RolloutRequest]:
        """Those whose groups this rank's replica serves."""
        replica = self.replica.replica_of(self._rank)
        return [one for one in requests if one.group % self.num_replicas == replica]

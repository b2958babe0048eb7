"""Samples that servers make while the trainer learns: which prompts, and what has come back.

Prompts are known by their place in the data's order, from 0 over the whole run. At a step all
places below (step + 1 + max_staleness) x rollout_batch_size have been given to the servers; the
step takes the first rollout_batch_size of them whose samples are all there, so that one long answer
keeps nobody waiting, and each place is taken once. A group with a token of weights that are too old
is dropped and made again from other seeds.

What has come back is on one rank; which places are open is the same on all ranks, and is what a
checkpoint keeps: after it they are made again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from megarl.data.order import PromptOrder
from megarl.data.seeds import stable_hash, step_seeds
from megarl.errors import RunError
from megarl.rollout.servers.lane import Lane
from megarl.types import Prompt, Rollout, RolloutRequest, SamplingSpec


@dataclass(frozen=True, slots=True)
class Pace:
    """How far ahead, and in what portions."""

    batch: int
    """Prompts of a step."""
    num_samples: int
    """Of each prompt."""
    max_staleness: int
    steps: int
    """Of the run: nothing is made that no step would take."""
    seed: int


@dataclass
class Ahead:
    """The open places of a run."""

    pace: Pace
    prompts: Sequence[Prompt]
    order: PromptOrder
    sampling: SamplingSpec
    lane: Lane | None
    """To the servers; on the rank that asks them."""
    dropped: int = 0
    """Groups that had become too old."""
    _first: int = 0
    """All places below are taken."""
    _taken: set[int] = field(default_factory=set)
    """Those above that are, too."""
    _asked: dict[int, int] = field(default_factory=dict)
    """Place -> how often its samples were dropped; of those on their way or back."""
    _parts: dict[int, list[Rollout]] = field(default_factory=dict)
    """Place -> samples that are back."""

    def collect(
        self, step: int, version: int, on_taken: Callable[[Sequence[Rollout]], None]
    ) -> dict[int, list[Rollout]]:
        """Place -> samples, for one step; waits for them. On the rank with the lane.

        version: of the weights that will learn from them. on_taken hears of each group at once.
        """
        lane, taken = self.lane, dict[int, list[Rollout]]()
        assert lane is not None
        limit = min(step + 1 + self.pace.max_staleness, self.pace.steps) * self.pace.batch
        self._ask([place for place in self._open(limit) if place not in self._asked])
        lane.look()
        while True:
            for rollout in lane.poll():
                self._parts.setdefault(rollout.request.group, []).append(rollout)
            missing = self.pace.batch - len(taken)
            whole = [p for p, some in self._parts.items() if len(some) == self.pace.num_samples]
            for place in sorted(whole)[:missing]:
                group = sorted(self._parts.pop(place), key=lambda one: one.request.row)
                if version - min(one.weight_version for one in group) > self.pace.max_staleness:
                    self.dropped += 1
                    self._asked[place] += 1
                    self._ask([place])
                    continue
                taken[place] = group
                on_taken(group)
            if len(taken) == self.pace.batch:
                return taken
            if len(whole) <= missing and not lane.step():
                raise RunError(f"rollout: {len(taken)} groups came of {self.pace.batch}")

    def take(self, places: Sequence[int]) -> None:
        """A step has these; all ranks say it."""
        self._taken |= set(places)
        for place in places:
            self._asked.pop(place, None)
        while self._first in self._taken:
            self._taken.remove(self._first)
            self._first += 1

    def prompt_at(self, place: int) -> Prompt:
        """The prompt there."""
        return self.prompts[self.order.at(place)]

    def state_dict(self) -> dict[str, Any]:
        """Which places are open."""
        return {"first": self._first, "taken": sorted(self._taken), "dropped": self.dropped}

    def load_state_dict(self, state: dict[str, Any] | None, position: int) -> None:
        """Go on; None: the run so far was not ahead, and stands at this place of the order."""
        state = state or {"first": position, "taken": [], "dropped": 0}
        self._first, self._taken = state["first"], set(state["taken"])
        self.dropped = state["dropped"]
        self._asked.clear()
        self._parts.clear()
        if self.lane is not None:
            self.lane.abort()

    def _open(self, limit: int) -> list[int]:
        return [place for place in range(self._first, limit) if place not in self._taken]

    def _ask(self, places: Sequence[int]) -> None:
        requests = []
        for place in places:
            attempt = self._asked.setdefault(place, 0)
            prompt, count = self.prompt_at(place), self.pace.num_samples
            requests += [
                RolloutRequest(place * count + index, place, prompt, seed)
                for index, seed in enumerate(self._seeds(place, attempt))
            ]
        if requests:
            assert self.lane is not None
            self.lane.submit(requests, self.sampling, more=True)

    def _seeds(self, place: int, attempt: int) -> list[int]:
        """Those of the step to which the place belongs; others for each further attempt."""
        step, index = divmod(place, self.pace.batch)
        first = step * self.pace.batch
        ids = [self.prompt_at(first + i).prompt_id for i in range(index + 1)]
        seeds = step_seeds(self.pace.seed, step, ids, self.pace.num_samples)[-1]
        return [stable_hash(seed, "again", attempt) for seed in seeds] if attempt else seeds


def staleness_metrics(groups: Sequence[Sequence[Rollout]], version: int) -> dict[str, float]:
    """How many syncs lie between the weights that made tokens and those that learn from them."""
    counts: dict[int, int] = {}
    for group in groups:
        for rollout in group:
            for made_by, tokens in rollout.spans:
                lag = version - made_by
                counts[lag] = counts.get(lag, 0) + tokens
    total = max(sum(counts.values()), 1)
    mixed = sum(len(one.spans) > 1 for group in groups for one in group)
    return {
        "async/staleness_mean": sum(lag * count for lag, count in counts.items()) / total,
        "async/staleness_max": float(max(counts, default=0)),
        "async/samples_of_several_weights": float(mixed),
        **{f"async/staleness/{lag}": count / total for lag, count in sorted(counts.items())},
    }


def idle_metrics(metrics: Mapping[str, float]) -> dict[str, float]:
    """Who waited for whom in a step, and how long the same would have taken one after the other.

    gain: (seconds in which servers worked + seconds in which the trainer did) / the step's.
    """
    step, waited = metrics["timing_s/step"], metrics["timing_s/generate"]
    idle = min(metrics["rollout/idle_s"], step)
    return {
        "async/trainer_idle_s": waited,
        "async/rollout_idle_s": idle,
        "async/gain": (step - idle + step - waited) / max(step, 1e-9),
    }

"""Which server gets the next sample, and which ones are left alone for a while: pure bookkeeping.

Samples of a prompt go to one server, where its prefix is in the cache, unless another is much less
busy. A server that failed rests, longer each time, and is asked again afterwards: whether it lives
is found out by asking.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

SLACK = 8
"""Samples that a server may have more than the least busy one before its prompts go elsewhere."""
REST_S, LONGEST_REST_S = 0.5, 30.0


@dataclass
class _State:
    running: int = 0
    failures: int = 0
    """In a row."""
    rests_until: float = 0.0
    is_member: bool = True


@dataclass
class Router:
    """The servers by name, and what each is doing. Times are of one monotonic clock, seconds."""

    limit: int
    """Samples at a server at the same time, at most."""
    _states: dict[str, _State] = field(default_factory=dict)
    _homes: dict[Hashable, str] = field(default_factory=dict)

    def set_members(self, names: Sequence[str]) -> None:
        """These servers are there now; one that comes back does not rest."""
        for name in names:
            state = self._states.setdefault(name, _State(is_member=False))
            if not state.is_member:
                state.is_member, state.failures, state.rests_until = True, 0, 0.0
        for name in set(self._states) - set(names):
            self._states[name].is_member = False
        self._homes = {key: home for key, home in self._homes.items() if home in names}

    def members(self) -> list[str]:
        """The servers that are there now."""
        return [name for name, state in self._states.items() if state.is_member]

    def expel(self, name: str) -> None:
        """It is not asked again before it is made a member anew."""
        self._states[name].is_member = False
        self._homes = {key: home for key, home in self._homes.items() if home != name}

    def choose(self, key: Hashable, now: float, avoid: frozenset[str] = frozenset()) -> str | None:
        """A server for a sample of the prompt `key`; None where all are busy or rest.

        avoid: servers that this sample was given to before; they are taken where there are no
        others.
        """
        free = [
            name
            for name, state in self._states.items()
            if state.is_member and state.running < self.limit and state.rests_until <= now
        ]
        free = [name for name in free if name not in avoid] or free
        if not free:
            return None
        least = min(free, key=lambda name: self._states[name].running)
        home = self._homes.get(key)
        if home in free and self._states[home].running <= self._states[least].running + SLACK:
            return home
        self._homes[key] = least
        return least

    def begin(self, name: str) -> None:
        """The server has one sample more."""
        self._states[name].running += 1

    def end(self, name: str) -> None:
        """And one less: answered, failed or given up."""
        self._states[name].running -= 1

    def answered(self, name: str) -> None:
        """It lives."""
        self._states[name].failures, self._states[name].rests_until = 0, 0.0

    def failed(self, name: str, now: float) -> bool:
        """It did not answer as it should: it rests for a while, twice as long each time.

        Returns whether that is news: it had answered before.
        """
        state = self._states[name]
        if state.rests_until > now:  # what was there when it broke breaks with it, and counts once
            return False
        state.failures += 1
        state.rests_until = now + min(REST_S * 2 ** (state.failures - 1), LONGEST_REST_S)
        return state.failures == 1

    def wakes_at(self) -> float | None:
        """When the first resting server may be asked again; None where none rests."""
        resting = [s.rests_until for s in self._states.values() if s.is_member and s.rests_until]
        return min(resting, default=None)

    def forget_prompts(self) -> None:
        """New weights: no cache holds a prefix of any use."""
        self._homes.clear()

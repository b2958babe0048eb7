"""Which ranks each role has, from the flat `resources` mapping: pure, without process groups."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from megarl.config.schema import Config
from megarl.errors import ConfigError

ROLES = ("actor", "critic", "reference", "reward", "rollout")
"""Roles that have ranks; those that name none share the actor's."""

_SUFFIX = "_gpus"


@dataclass(frozen=True, slots=True)
class ResolvedPools:
    """Ranks of every role; roles with equal ranks share a pool."""

    world_size: int
    ranks: Mapping[str, tuple[int, ...]]
    """Role -> its universe ranks, ascending."""
    given: frozenset[str]
    """Roles that `resources` names."""

    @property
    def pools(self) -> dict[tuple[int, ...], tuple[str, ...]]:
        """Ranks of each pool, by the first of them -> the roles on it."""
        distinct = sorted(set(self.ranks.values()))
        return {
            pool: tuple(role for role, ranks in self.ranks.items() if ranks == pool)
            for pool in distinct
        }


def wanted_world_size(config: Config, *, use_resources: bool = True) -> int:
    """Processes that the config asks for, where no launcher has decided.

    `run.world_size`, or else one more than the largest rank in `resources` (which counts for
    training), or else the ranks of one replica of the actor.
    """
    if config.run.world_size is not None:
        if config.run.world_size < 1:
            raise ConfigError(f"run.world_size is {config.run.world_size}: start at least 1")
        return config.run.world_size
    named = [rank for ranks in config.resources.values() for rank in ranks]
    if named and use_resources:
        return max(named) + 1
    mesh = config.actor.mesh
    size = mesh.tensor_model_parallel_size * mesh.pipeline_model_parallel_size
    return max(size * mesh.context_parallel_size * (mesh.data_parallel_size or 1), 1)


def pools_from_resources(resources: Mapping[str, Sequence[int]], world_size: int) -> ResolvedPools:
    """The ranks of every role; an empty mapping puts all roles on all ranks.

    ConfigError, naming keys and ranks, for unknown roles, negative, repeated or unordered ranks,
    ranks that no process has, ranks that no role has, and pools that overlap in part.
    """
    everyone = tuple(range(world_size))
    if not resources:
        return ResolvedPools(world_size, dict.fromkeys(ROLES, everyone), frozenset())
    given = {_role(key): _checked(key, ranks) for key, ranks in resources.items()}
    if "actor" not in given:
        raise ConfigError(
            f"resources names {', '.join(resources)} but not actor{_SUFFIX}: the actor needs "
            "ranks, and roles that are not named share them"
        )
    _check_overlap(given)
    seen = sorted({rank for ranks in given.values() for rank in ranks})
    if extra := [rank for rank in seen if rank >= world_size]:
        keys = [f"{role}{_SUFFIX}" for role, ranks in given.items() if set(ranks) & set(extra)]
        raise ConfigError(
            f"resources.{keys[0]}: there is no rank {_listed(extra)}: {world_size} processes are "
            f"started, with ranks 0 to {world_size - 1}; start {max(extra) + 1}, or name others"
        )
    if missing := sorted(set(everyone) - set(seen)):
        raise ConfigError(
            f"resources: rank {_listed(missing)} of {world_size} has no role; name it, or start "
            f"{len(seen)} processes with ranks 0 to {len(seen) - 1}"
        )
    ranks = {role: given.get(role, given["actor"]) for role in ROLES}
    return ResolvedPools(world_size, ranks, frozenset(given))


def _role(key: str) -> str:
    role = key.removesuffix(_SUFFIX)
    if key.endswith(_SUFFIX) and role in ROLES:
        return role
    known = [f"{name}{_SUFFIX}" for name in ROLES]
    close = difflib.get_close_matches(key, known, n=1)
    hint = f" (did you mean {close[0]}?)" if close else ""
    raise ConfigError(f"resources.{key} is no role{hint}: one of {', '.join(known)}")


def _checked(key: str, ranks: Sequence[int]) -> tuple[int, ...]:
    if not ranks:
        raise ConfigError(f"resources.{key} is empty: list its ranks, or leave the key out")
    if negative := [rank for rank in ranks if rank < 0]:
        raise ConfigError(f"resources.{key}: {negative[0]} is no rank: ranks start at 0")
    if repeated := sorted({rank for rank in ranks if list(ranks).count(rank) > 1}):
        raise ConfigError(f"resources.{key}: rank {_listed(repeated)} stands in it twice")
    if any(a > b for a, b in pairwise(ranks)):
        raise ConfigError(
            f"resources.{key} is {list(ranks)}: write ranks in ascending order, {sorted(ranks)}"
        )
    return tuple(ranks)


def _check_overlap(given: Mapping[str, tuple[int, ...]]) -> None:
    roles = list(given)
    for i, a in enumerate(roles):
        for b in roles[:i]:
            shared = sorted(set(given[a]) & set(given[b]))
            if shared and given[a] != given[b]:
                raise ConfigError(
                    f"resources: {b}{_SUFFIX} {list(given[b])} and {a}{_SUFFIX} {list(given[a])} "
                    f"overlap in rank {_listed(shared)} only: roles share all ranks of a pool or "
                    "none; make the lists equal, or disjoint"
                )


def _listed(ranks: Sequence[int]) -> str:
    return ", ".join(map(str, ranks[:8])) + (" ..." if len(ranks) > 8 else "")

"""All processes of a run, the pools they are dealt to, and the universe's own group.

Inside a pool torch.distributed's default group is the pool, so Megatron-Core and vLLM run in it
as if it were the whole job. The universe keeps a gloo group beside it for what crosses pools:
rows, weights, and the small control exchange of each phase.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

import torch.distributed as dist

from megarl.errors import ConfigError, RunError
from megarl.mesh.group import RankGroup
from megarl.runtime.bringup import Launch, open_store
from megarl.runtime.device import backend
from megarl.runtime.environment import enter_pool


@dataclass(frozen=True, slots=True)
class Pool:
    """A set of universe ranks with the same roles; pool rank i is `ranks[i]`."""

    name: str
    ranks: tuple[int, ...]


def check_pools(pools: Sequence[Pool], world_size: int) -> None:
    """Pools partition ranks 0..world_size-1; raises ConfigError with the ranks that do not fit."""
    seen: dict[int, str] = {}
    for pool in pools:
        for rank in pool.ranks:
            if rank in seen:
                raise ConfigError(
                    f"resources: rank {rank} is in pools {seen[rank]} and {pool.name}; roles share "
                    "all ranks of a pool or none"
                )
            seen[rank] = pool.name
    missing = sorted(set(range(world_size)) - set(seen))
    extra = sorted(set(seen) - set(range(world_size)))
    if missing or extra:
        what = f"ranks {missing} belong to no pool" if missing else f"ranks {extra} do not exist"
        raise ConfigError(f"resources: {what}: {world_size} processes were started")


class Universe(RankGroup):
    """This process's view of the whole run."""

    def __init__(self, launch: Launch, pools: Sequence[Pool], timeout_s: float) -> None:
        check_pools(pools, launch.world_size)
        self.launch = launch
        self.pools = tuple(pools)
        self.pool = next(pool for pool in pools if launch.rank in pool.ranks)
        self.pool_rank = self.pool.ranks.index(launch.rank)
        timeout = timedelta(seconds=timeout_s)
        self.root_store = open_store(launch, timeout_s)
        self.store = dist.PrefixStore(f"megarl/{launch.attempt}", self.root_store)
        group_store = dist.PrefixStore("universe", self.store)
        super().__init__(group_store, launch.rank, launch.world_size, timeout)
        enter_pool(launch, self.pool_rank, len(self.pool.ranks))
        dist.init_process_group(
            backend(),
            store=dist.PrefixStore(f"pool/{self.pool.name}", self.store),
            rank=self.pool_rank,
            world_size=len(self.pool.ranks),
            timeout=timeout,
        )

    def pool_of(self, ranks: Sequence[int]) -> Pool:
        """The pool with exactly these ranks; raises RunError when there is none."""
        for pool in self.pools:
            if pool.ranks == tuple(ranks):
                return pool
        raise RunError(f"no pool has the ranks {list(ranks)}")

    def close(self) -> None:
        """Leave the groups; the pool's default group is destroyed unless vLLM already did so."""
        if dist.is_initialized():
            dist.destroy_process_group()

"""vLLM's process groups in the order of a replica layout, instead of one after the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import Any

from megarl.layout import ReplicaLayout


@contextmanager
def grouped_as(replica: ReplicaLayout, num_ranks: int) -> Iterator[None]:
    """Within it, vLLM's place number i is the rank that `replica` gives that place to.

    vLLM deals ranks to its groups by places: the stages of a replica, tensor ranks within each.
    """
    from vllm.distributed import parallel_state

    replicas = range(num_ranks // replica.size)
    rank_at = [rank for number in replicas for rank in replica.members(number)]
    original = parallel_state.init_model_parallel_group

    @wraps(original)
    def reordered(group_ranks: Sequence[Sequence[int]], *args: Any, **kwargs: Any) -> Any:
        groups = [[rank_at[place] for place in group] for group in group_ranks]
        assert all(group == sorted(group) for group in groups), "torch sorts a group's ranks"
        return original(groups, *args, **kwargs)

    parallel_state.init_model_parallel_group = reordered
    try:
        yield
    finally:
        parallel_state.init_model_parallel_group = original

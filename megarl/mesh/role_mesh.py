"""A role's mesh with its process groups, and the way Megatron's globals see it.

Groups go to Megatron explicitly (`ProcessGroupCollection`). What still reads the globals of
`parallel_state` runs inside `RoleMesh.activate()`; outside it those getters raise.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from megatron.core import parallel_state, tensor_parallel
from megatron.core.process_groups_config import ProcessGroupCollection

from megarl.errors import RunError
from megarl.mesh.layout import Coordinates, MeshLayout

GLOBALS = {
    "_TENSOR_MODEL_PARALLEL_GROUP": "tp",
    "_PIPELINE_MODEL_PARALLEL_GROUP": "pp",
    "_MODEL_PARALLEL_GROUP": "mp",
    "_EMBEDDING_GROUP": "embd",
    "_POSITION_EMBEDDING_GROUP": "pos_embd",
    "_DATA_PARALLEL_GROUP": "dp",
    "_DATA_PARALLEL_GROUP_WITH_CP": "dp_cp",
    "_INTRA_PARTIAL_DATA_PARALLEL_GROUP_WITH_CP": "dp_cp",
    "_CONTEXT_PARALLEL_GROUP": "cp",
    "_TENSOR_AND_CONTEXT_PARALLEL_GROUP": "tp_cp",
    "_TENSOR_AND_DATA_PARALLEL_GROUP_WITH_CP": "tp_dp_cp",
    "_EXPERT_MODEL_PARALLEL_GROUP": "ep",
    "_EXPERT_TENSOR_PARALLEL_GROUP": "expt_tp",
    "_EXPERT_TENSOR_AND_MODEL_PARALLEL_GROUP": "tp_ep",
    "_EXPERT_TENSOR_MODEL_PIPELINE_PARALLEL_GROUP": "tp_ep_pp",
    "_EXPERT_DATA_PARALLEL_GROUP": "expt_dp",
    "_INTRA_PARTIAL_EXPERT_DATA_PARALLEL_GROUP": "expt_dp",
}
"""Name in megatron.core.parallel_state -> field of the ProcessGroupCollection."""

RNG_NAMES = ("model-parallel-rng", "data-parallel-rng", "expert-parallel-rng")
RNG_SEED = 2718
"""Nothing of a result depends on these: dropout is 0 and weights come from elsewhere."""

_active: list[str] = []


class GroupFactory:
    """Makes each set of pool ranks into a process group once, in the same order on every rank."""

    def __init__(self, timeout_s: float) -> None:
        self._groups: dict[tuple[int, ...], dist.ProcessGroup] = {}
        self._timeout = timedelta(seconds=timeout_s)

    def mine(self, enumeration: list[tuple[int, ...]]) -> dist.ProcessGroup | None:
        """This rank's group among `enumeration`; every rank of the pool must call it alike."""
        rank, own = dist.get_rank(), None
        for ranks in enumeration:
            if ranks not in self._groups:
                self._groups[ranks] = dist.new_group(list(ranks), timeout=self._timeout)
            if rank in ranks:
                own = self._groups[ranks]
        return own


class RoleMesh:
    """One role's ranks, coordinates and process groups on this rank's pool."""

    def __init__(self, role: str, layout: MeshLayout, factory: GroupFactory) -> None:
        if layout.size != dist.get_world_size():
            raise RunError(
                f"{role}: mesh {layout.describe()} has {layout.size} places, "
                f"its pool {dist.get_world_size()} ranks"
            )
        self.role = role
        self.layout = layout
        self.rank = dist.get_rank()
        self.at: Coordinates = layout.coordinates(self.rank)
        self.groups = _make_groups(layout, factory)
        self.slice_group = factory.mine(layout.enumerate_groups(("tp", "cp", "pp")))
        """Ranks that work on the same rows."""
        self.rng_states = _fresh_rng_states(self.at)

    @property
    def is_owner(self) -> bool:
        """Whether this rank holds the rows of its slice."""
        return self.rank == self.owner_rank

    @property
    def owner_rank(self) -> int:
        """Pool rank of this slice's owner."""
        return self.layout.owner(self.at.dp)

    @property
    def is_first_stage(self) -> bool:
        """Whether this rank embeds tokens."""
        return self.at.pp == 0

    @property
    def is_last_stage(self) -> bool:
        """Whether this rank holds the head."""
        return self.at.pp == self.layout.pp - 1

    @contextmanager
    def activate(self) -> Iterator[None]:
        """Put this role's groups and RNG states where Megatron reads globals; take them away after.

        Raises RunError when another role's mesh is active.
        """
        if _active:
            raise RunError(f"{self.role}: the mesh of {_active[-1]} is still active")
        _active.append(self.role)
        for name, field in GLOBALS.items():
            setattr(parallel_state, name, getattr(self.groups, field))
        parallel_state._set_global_memory_buffer()
        if self.layout.vpp > 1:
            parallel_state._VIRTUAL_PIPELINE_MODEL_PARALLEL_WORLD_SIZE = self.layout.vpp
        tracker = tensor_parallel.get_cuda_rng_tracker()
        tracker.set_states(self.rng_states)
        try:
            yield
        finally:
            self.rng_states = tracker.get_states()
            tracker.reset()
            for name in GLOBALS:
                setattr(parallel_state, name, None)
            parallel_state._VIRTUAL_PIPELINE_MODEL_PARALLEL_WORLD_SIZE = None
            parallel_state._GLOBAL_MEMORY_BUFFER = None
            _active.pop()


def _fresh_rng_states(at: Coordinates) -> dict[str, torch.Tensor]:
    """States of Megatron's named generators: they differ over tensor ranks, as Megatron wants."""
    tracker = tensor_parallel.get_cuda_rng_tracker()
    tracker.reset()
    for offset, name in enumerate(RNG_NAMES):
        tracker.add(name, RNG_SEED + 1000 * offset + at.tp)
    states: dict[str, torch.Tensor] = tracker.get_states()
    tracker.reset()
    return states


def _make_groups(layout: MeshLayout, factory: GroupFactory) -> ProcessGroupCollection:
    groups = ProcessGroupCollection()

    def make(axes: tuple[str, ...], of: MeshLayout = layout) -> dist.ProcessGroup | None:
        return factory.mine(of.enumerate_groups(axes))

    for field, axes in {
        "tp": ("tp",), "pp": ("pp",), "mp": ("tp", "pp"), "cp": ("cp",), "tp_cp": ("tp", "cp"),
        "dp": ("dp",), "dp_cp": ("cp", "dp"), "intra_dp_cp": ("cp", "dp"),
        "tp_dp_cp": ("tp", "cp", "dp"),
    }.items():  # fmt: skip
        setattr(groups, field, make(axes))
    experts = layout.expert_layout()
    for field, axes in {
        "expt_tp": ("tp",), "ep": ("cp",), "tp_ep": ("tp", "cp"), "tp_ep_pp": ("tp", "cp", "pp"),
        "expt_dp": ("dp",), "intra_expt_dp": ("dp",),
    }.items():  # fmt: skip
        setattr(groups, field, make(axes, experts))
    stages = layout.enumerate_groups(("pp",))
    groups.embd = factory.mine([tuple(sorted({ranks[0], ranks[-1]})) for ranks in stages])
    groups.pos_embd = factory.mine([(ranks[0],) for ranks in stages])
    groups.inter_dist_opt = None
    groups.intra_dist_opt = factory.mine([tuple(range(layout.size))])
    return groups

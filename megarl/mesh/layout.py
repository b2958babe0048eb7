"""Where each rank of a pool stands in a role's mesh: pure arithmetic, no process groups.

Order of axes is Megatron's tp-cp-dp-pp: tensor ranks are neighbours, pipeline stages far apart.
Expert groups are dealt over the same pool in the order etp-ep-edp-pp.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

from megarl.config.schema import MeshConfig
from megarl.errors import ConfigError
from megarl.layout.megatron_side import LayerNorm, MegatronSlice

AXES = ("tp", "cp", "dp", "pp")


@dataclass(frozen=True, slots=True)
class Coordinates:
    """One rank's place in a mesh."""

    tp: int
    cp: int
    dp: int
    pp: int


@dataclass(frozen=True, slots=True)
class MeshLayout:
    """Sizes of one role's mesh over a pool of tp x cp x dp x pp ranks."""

    tp: int = 1
    cp: int = 1
    dp: int = 1
    pp: int = 1
    vpp: int = 1
    ep: int = 1
    etp: int = 1
    sequence_parallel: bool = False
    first_stage_layers: int | None = None
    last_stage_layers: int | None = None

    @property
    def size(self) -> int:
        """Ranks in the mesh."""
        return self.tp * self.cp * self.dp * self.pp

    def coordinates(self, rank: int) -> Coordinates:
        """The place of pool rank `rank`."""
        tp, rest = rank % self.tp, rank // self.tp
        cp, rest = rest % self.cp, rest // self.cp
        return Coordinates(tp, cp, rest % self.dp, rest // self.dp)

    def rank(self, *, tp: int = 0, cp: int = 0, dp: int = 0, pp: int = 0) -> int:
        """The pool rank at a place."""
        return tp + self.tp * (cp + self.cp * (dp + self.dp * pp))

    def owner(self, dp: int) -> int:
        """The pool rank that owns the rows of slice `dp`: tensor 0, context 0, last stage."""
        return self.rank(dp=dp, pp=self.pp - 1)

    def enumerate_groups(self, axes: tuple[str, ...]) -> list[tuple[int, ...]]:
        """Pool ranks of every group that varies over `axes`, ascending inside a group."""
        sizes = {"tp": self.tp, "cp": self.cp, "dp": self.dp, "pp": self.pp}
        fixed = [axis for axis in AXES if axis not in axes]
        groups = []
        for outer in product(*(range(sizes[axis]) for axis in fixed)):
            place = dict(zip(fixed, outer, strict=True))
            inner = product(*(range(sizes[axis]) for axis in axes))
            ranks = (self.rank(**place, **dict(zip(axes, i, strict=True))) for i in inner)
            groups.append(tuple(sorted(ranks)))
        return groups

    def expert_layout(self) -> MeshLayout:
        """The mesh that experts see: tp is expert-TP, cp stands for EP, dp for expert-DP."""
        dp = self.size // (self.etp * self.ep * self.pp)
        return MeshLayout(tp=self.etp, cp=self.ep, dp=dp, pp=self.pp)

    def describe(self) -> str:
        """The layout as Megatron users write it: t2p2d1, and what else is not 1."""
        text = f"t{self.tp}p{self.pp}d{self.dp}"
        extras = {"c": self.cp, "v": self.vpp, "e": self.ep, "et": self.etp}
        text += "".join(f"{name}{size}" for name, size in extras.items() if size > 1)
        return text + ("+sp" if self.sequence_parallel else "")


def megatron_slice(layout: MeshLayout, rank: int, layernorm: LayerNorm = "local") -> MegatronSlice:
    """What the planner needs to know of pool rank `rank` of a mesh."""
    at, expert = layout.coordinates(rank), layout.expert_layout().coordinates(rank)
    return MegatronSlice(
        tp_rank=at.tp,
        tp_size=layout.tp,
        pp_rank=at.pp,
        pp_size=layout.pp,
        vpp_size=layout.vpp,
        first_stage_layers=layout.first_stage_layers,
        last_stage_layers=layout.last_stage_layers,
        ep_rank=expert.cp,
        ep_size=layout.ep,
        etp_rank=expert.tp,
        etp_size=layout.etp,
        layernorm=layernorm,
    )


def layout_from_config(config: MeshConfig, pool_size: int, key: str) -> MeshLayout:
    """The layout of a role that fills a pool of `pool_size` ranks.

    Raises ConfigError, naming `key` and the sizes, where the sizes do not divide the pool.
    """
    tp, pp = config.tensor_model_parallel_size, config.pipeline_model_parallel_size
    cp, ep = config.context_parallel_size, config.expert_model_parallel_size
    etp = config.expert_tensor_parallel_size
    for name, size in (("tensor_model_parallel_size", tp), ("pipeline_model_parallel_size", pp),
                       ("context_parallel_size", cp), ("expert_model_parallel_size", ep),
                       ("expert_tensor_parallel_size", etp)):  # fmt: skip
        if size < 1:
            raise ConfigError(f"{key}.{name} is {size}: sizes start at 1")
    if pool_size % (tp * pp * cp):
        raise ConfigError(
            f"{key}: tensor {tp} x pipeline {pp} x context {cp} = {tp * pp * cp} does not divide "
            f"the pool's {pool_size} ranks; change the sizes, or the ranks of the pool"
        )
    if pool_size % (etp * ep * pp):
        raise ConfigError(
            f"{key}: expert tensor {etp} x expert {ep} x pipeline {pp} = {etp * ep * pp} does not "
            f"divide the pool's {pool_size} ranks"
        )
    return MeshLayout(
        tp=tp,
        cp=cp,
        pp=pp,
        dp=pool_size // (tp * pp * cp),
        vpp=config.virtual_pipeline_model_parallel_size or 1,
        ep=ep,
        etp=etp,
        sequence_parallel=config.sequence_parallel,
        first_stage_layers=config.num_layers_in_first_pipeline_stage,
        last_stage_layers=config.num_layers_in_last_pipeline_stage,
    )

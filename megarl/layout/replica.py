"""Which rank takes which place in which vLLM replica: strides over the ranks of the rollout.

Both dimensions of a replica may stride over ranks that belong to other replicas, so that every rank
can be given weights that it holds already. Ranks stay in ascending order within every group, since
torch.distributed sorts a group's ranks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from megarl.errors import ConfigError


@dataclass(frozen=True, slots=True)
class VllmSlice:
    """One rank's place in a vLLM replica."""

    tp_rank: int = 0
    tp_size: int = 1
    pp_rank: int = 0
    pp_size: int = 1
    expert_parallel: bool = False
    """Whether the replica's ranks deal whole experts among them, instead of cutting each."""


@dataclass(frozen=True, slots=True)
class ReplicaLayout:
    """vLLM replicas over ranks 0, 1, ...; without strides tensor ranks are neighbours, then stages.

    With tp 2 and tp_stride 2, ranks 0 and 2 are one replica, 1 and 3 the next.
    """

    tp: int = 1
    pp: int = 1
    expert_parallel: bool = False
    tp_stride: int = 1
    """Distance of neighbouring tensor ranks."""
    pp_stride: int | None = None
    """Distance of neighbouring stages; None: that of the tensor ranks times their number."""

    def __post_init__(self) -> None:
        """ConfigError for sizes below 1, and strides under which replicas would overlap."""
        if min(self.tp, self.pp) < 1:
            raise ConfigError(f"replicas of {self.tp} tensor ranks x {self.pp} stages have no rank")
        (step, size), (outer, _) = self._steps
        if step < 1 or outer % (step * size):
            raise ConfigError(
                f"replicas of {self.tp} tensor ranks {self.tp_stride} apart and {self.pp} stages "
                f"{self.pp_stride} apart overlap"
            )

    @property
    def size(self) -> int:
        """Ranks of a replica."""
        return self.tp * self.pp

    @property
    def sizes(self) -> tuple[int, int, bool]:
        """All but the strides."""
        return self.tp, self.pp, self.expert_parallel

    def place_of(self, index: int) -> int:
        """Rank number `index`'s position in its replica: stage x tp + tensor rank."""
        return self._stage(index) * self.tp + self._tensor_rank(index)

    def replica_of(self, index: int) -> int:
        """The number of its replica; replicas count by their first rank."""
        (step, size), (outer, outer_size) = self._steps
        low, middle, high = index % step, index // (step * size), index // (outer * outer_size)
        between = outer // (step * size)
        return (high * between + middle % between) * step + low

    def members(self, replica: int) -> tuple[int, ...]:
        """Its ranks, by place."""
        (step, size), (outer, outer_size) = self._steps
        between = outer // (step * size)
        rest, low = divmod(replica, step)
        high, middle = divmod(rest, between)
        first = high * outer * outer_size + middle * step * size + low
        tp_step, pp_step = self.tp_stride, self._pp_stride
        places = ((stage, rank) for stage in range(self.pp) for rank in range(self.tp))
        return tuple(first + stage * pp_step + rank * tp_step for stage, rank in places)

    def slice_of(self, index: int) -> VllmSlice:
        """The place of rank number `index` of the rollout."""
        return VllmSlice(
            self._tensor_rank(index), self.tp, self._stage(index), self.pp, self.expert_parallel
        )

    def describe(self) -> str:
        """As in t2p2: tensor and pipeline sizes; +ep where experts are dealt over the replica."""
        pipeline = f"p{self.pp}" if self.pp > 1 else ""
        return f"t{self.tp}{pipeline}" + ("+ep" if self.expert_parallel else "")

    def assignments(self, num_ranks: int) -> Iterator[ReplicaLayout]:
        """The same replicas with every pair of strides that fills the ranks; neighbours first."""
        for tp_stride in _divisors(num_ranks // self.tp):
            for pp_stride in _divisors(num_ranks // self.pp):
                inner, outer = sorted(((tp_stride, self.tp), (pp_stride, self.pp)))
                fits = outer[0] % (inner[0] * inner[1]) == 0
                if self.pp == 1:
                    fits = pp_stride == tp_stride * self.tp
                elif self.tp == 1:
                    fits = tp_stride == 1
                if fits and num_ranks % (outer[0] * outer[1]) == 0:
                    yield replace(self, tp_stride=tp_stride, pp_stride=pp_stride)

    @property
    def _pp_stride(self) -> int:
        return self.tp_stride * self.tp if self.pp_stride is None else self.pp_stride

    @property
    def _steps(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """(stride, size) of the dimension whose neighbours are closer, and of the other."""
        inner, outer = sorted(((self.tp_stride, self.tp), (self._pp_stride, self.pp)))
        return inner, outer

    def _tensor_rank(self, index: int) -> int:
        return index // self.tp_stride % self.tp

    def _stage(self, index: int) -> int:
        return index // self._pp_stride % self.pp


def _divisors(number: int) -> Iterator[int]:
    return (each for each in range(1, number + 1) if number % each == 0)

"""How the rows of one step are dealt to one role: slices, owners, mini- and micro-batches.

Pure arithmetic on the per-row scalars that all ranks share.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from megarl.mesh.layout import MeshLayout
from megarl.mesh.rows import RowMap
from megarl.mesh.universe import Pool
from megarl.roles.batching import MicroBatchLimit, cut_micro_batches, slice_of_rows
from megarl.types import RowTable


@dataclass(frozen=True, slots=True)
class StepRows:
    """What every role must know of a step's rows."""

    group: tuple[int, ...]
    prompt_length: tuple[int, ...]
    response_length: tuple[int, ...]
    mini_batches: tuple[tuple[int, ...], ...]
    """Rows of each optimizer step of an epoch."""
    learned_length: tuple[int, ...] | None = None
    """Response tokens of each row that are learned; None: all."""

    @property
    def counted(self) -> tuple[int, ...]:
        """Response tokens of each row that are learned."""
        return self.response_length if self.learned_length is None else self.learned_length

    @property
    def length(self) -> list[int]:
        """Tokens of each row, prompt and response."""
        return [p + r for p, r in zip(self.prompt_length, self.response_length, strict=True)]

    @property
    def width(self) -> int:
        """R: the longest response."""
        return max(max(self.response_length, default=0), 1)


def step_rows(table: RowTable, mini_batches: Sequence[Sequence[int]]) -> StepRows:
    """The step's rows from its table."""
    return StepRows(
        tuple(table.group.tolist()),
        tuple(table.prompt_length.tolist()),
        tuple(table.response_length.tolist()),
        tuple(tuple(rows) for rows in mini_batches),
        None if table.learned_length is None else tuple(table.learned_length.tolist()),
    )


@dataclass(frozen=True, slots=True)
class RoleRows:
    """The step's rows as one role sees them."""

    rows: StepRows
    layout: MeshLayout
    slices: tuple[int, ...]
    """Data-parallel slice of each row."""
    map: RowMap
    """Owner of each row."""

    def micro_batches(
        self, rows: Sequence[int], slice_index: int, limit: MicroBatchLimit
    ) -> list[list[int]]:
        """This slice's micro-batches of the rows of one mini-batch."""
        multiple = self.layout.pp if self.layout.vpp > 1 else 1
        dp, length = self.layout.dp, self.rows.length
        cut = cut_micro_batches(rows, length, self.slices, dp, limit, multiple)
        return cut[slice_index]


def deal(rows: StepRows, layout: MeshLayout, pool: Pool) -> RoleRows:
    """Deal the step's rows over a role's data-parallel slices, balanced by tokens."""
    slices = slice_of_rows(rows.mini_batches, rows.group, rows.length, layout.dp)
    owners = tuple(pool.ranks[layout.owner(index)] for index in slices)
    return RoleRows(rows, layout, tuple(slices), RowMap(owners))

"""How rows and per-token numbers travel between the roles of a step."""

from __future__ import annotations

import torch
from torch import Tensor

from megarl.mesh.rows import RowMap, move_rows
from megarl.roles.megatron_role import MegatronRole, RoleBatch
from megarl.roles.step_rows import StepRows
from megarl.train.learner import Learner


def hand_out(
    run: Learner,
    rows: StepRows,
    source: RowMap,
    tokens: dict[int, Tensor],
    learned: dict[int, Tensor] | None = None,
) -> dict[str, RoleBatch | None]:
    """Each role's share of the token rows; roles that deal alike share one batch.

    learned: row -> bool [response] of this rank's own rows; None on all ranks: every token is.
    """
    batches: dict[str, RoleBatch | None] = {}
    done: dict[tuple[object, ...], RoleBatch | None] = {}
    for name, role in run.megatron_roles().items():
        key = (role.pool.ranks, role.layout)
        if key not in done:
            dealt = role.deal(rows)
            arrived = move_rows(run.universe, tokens, rows.length, source, dealt.map, torch.int64)
            done[key] = batch = role.take_rows(dealt, arrived)
            if learned is not None:
                numbers = {row: mask.float() for row, mask in learned.items()}
                mine = bring(run, rows, numbers, source, role, batch)
                if batch is not None:
                    batch.learned = in_slice(role, batch, mine) > 0.5
        batches[name] = done[key]
    return batches


def bring(
    run: Learner,
    rows: StepRows,
    values: dict[int, Tensor],
    source: RowMap,
    role: MegatronRole,
    batch: RoleBatch | None,
) -> Tensor | None:
    """Per-token numbers from their owners in `source` to the role's: fp32 [n, R] there.

    values: row -> float [response], of the rows that this rank owns.
    """
    target, lengths = role.deal(rows).map, list(rows.response_length)
    arrived = move_rows(run.universe, values, lengths, source, target, torch.float32)
    return batch.from_rows(arrived) if batch is not None and role.is_owner else None


def between(
    run: Learner,
    rows: StepRows,
    values: Tensor | None,
    source: tuple[MegatronRole, RoleBatch | None],
    target: tuple[MegatronRole, RoleBatch | None],
) -> Tensor | None:
    """One role's [n, R] on its own owners -> [n, R] on another's."""
    role, batch = source
    own = batch.to_rows(values) if batch is not None and values is not None else {}
    return bring(run, rows, own, role.deal(rows).map, *target)


def in_slice(role: MegatronRole, batch: RoleBatch | None, values: Tensor | None) -> Tensor:
    """An owner's [n, R], on all ranks of its slice."""
    if batch is None:
        return torch.zeros(0)
    shape = (len(batch.index), batch.width)
    mine = values if values is not None and role.is_owner else torch.zeros(shape)
    return role.broadcast(mine.float().contiguous())

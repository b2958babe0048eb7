"""Jobs about meshes: groups, globals, the control exchange, rows between ranks."""

from __future__ import annotations

import inspect
import random
from typing import Any

import torch
import torch.distributed as dist
from worker import Rank

from megarl.errors import RunError
from megarl.mesh.layout import MeshLayout
from megarl.mesh.role_mesh import GroupFactory, RoleMesh
from megarl.mesh.rows import RowMap, move_rows

SHARED_BY_ALL = {"get_all_ranks", "get_nccl_options"}
"""Not about a mesh."""


def global_getters(rank: Rank, layouts: dict[str, MeshLayout]) -> dict[str, Any]:
    """Which getters of parallel_state answer outside, inside each mesh, and after."""
    factory = GroupFactory(30)
    meshes = {name: RoleMesh(name, layout, factory) for name, layout in layouts.items()}
    found: dict[str, Any] = {"before": _answers()}
    for name, mesh in meshes.items():
        with mesh.activate():
            found[name] = _answers()
            try:
                with mesh.activate():
                    raise AssertionError("activated twice")
            except RunError as error:
                found["nested"] = str(error)
        found[f"after {name}"] = _answers()
    return found


def _answers() -> dict[str, Any]:
    """Getter -> its answer: ranks of a group, a number or None; raising ones are left out."""
    from megatron.core import parallel_state

    found: dict[str, Any] = {}
    for name, getter in inspect.getmembers(parallel_state, inspect.isfunction):
        needs = [p for p in inspect.signature(getter).parameters.values() if p.default is p.empty]
        if not name.startswith("get_") or needs or name in SHARED_BY_ALL:
            continue
        try:
            answer = getter()
        except (AssertionError, AttributeError, TypeError, KeyError):
            continue
        if isinstance(answer, dist.ProcessGroup):
            answer = tuple(dist.get_process_group_ranks(answer))
        if answer is None or isinstance(answer, int | tuple):
            found[name] = answer
    return found


def groups_of(rank: Rank, layout: MeshLayout) -> dict[str, tuple[int, ...]]:
    """Field of the ProcessGroupCollection -> ranks of this rank's group."""
    mesh = RoleMesh("role", layout, GroupFactory(30))
    fields = ("tp", "pp", "dp", "cp", "mp", "tp_cp", "dp_cp", "tp_dp_cp", "embd", "pos_embd")
    groups = {name: getattr(mesh.groups, name) for name in fields}
    return {
        name: () if group is None else tuple(dist.get_process_group_ranks(group))
        for name, group in groups.items()
    }


def rng_states_stay_apart(rank: Rank) -> bool:
    """What one role draws does not move another's generators."""
    from megatron.core.tensor_parallel import get_cuda_rng_tracker

    factory = GroupFactory(30)
    first, second = (RoleMesh(n, MeshLayout(tp=2), factory) for n in ("first", "second"))

    def draw(mesh: RoleMesh) -> float:
        with mesh.activate(), get_cuda_rng_tracker().fork():
            return float(torch.rand(1))

    outside = torch.get_rng_state()
    alone = [draw(first), draw(first)]
    third = RoleMesh("third", MeshLayout(tp=2), factory)
    mixed = [draw(third), draw(second), draw(third)]
    assert alone[0] != alone[1], "the generator does not go on where it stopped"
    return mixed[::2] == alone and torch.equal(outside, torch.get_rng_state())


def disagree(rank: Rank, other: int, verb: str, own: str) -> str:
    """All ranks exchange facts at verb `own`, but `other` is at `verb`; the message of each."""
    rank.control.enter(verb if rank.rank == other else own)
    try:
        rank.control.agree({"x": 1.0})
    except RunError as error:
        return str(error)
    return ""


def collect_texts(rank: Rank) -> list[Any]:
    """What `collect` gives of texts that differ in length."""
    rank.control.enter("texts")
    return rank.control.collect(["x" * 100_000 * rank.rank, rank.rank])


def exchange_facts(rank: Rank) -> tuple[Any, ...]:
    """The control exchange's answers."""
    control = rank.control
    control.enter("facts")
    return (
        control.gather({"rank": rank.rank, "text": "x" * rank.rank * 100}),
        control.agree({"a": rank.rank + 0.5, f"only{rank.rank}": 2.0}),
        control.sum(torch.tensor([1.0, float(rank.rank)])).tolist(),
    )


def shuffle_rows(rank: Rank, seed: int) -> None:
    """Rows with numbers of their own come from random owners to random owners."""
    dice, size = random.Random(seed), rank.universe.size
    count = 40
    lengths = [dice.choice([0, 1, 3, 17]) for _ in range(count)]
    source = RowMap(tuple(dice.randrange(size) for _ in range(count)))
    # Some ranks own nothing at the other end.
    target = RowMap(tuple(dice.randrange(max(size - 1, 1)) for _ in range(count)))
    for dtype in (torch.float32, torch.int64):
        content = [1000 * row + torch.arange(length) for row, length in enumerate(lengths)]
        own = {row: content[row].to(dtype) for row in source.rows_of(rank.rank)}
        arrived = move_rows(rank.universe, own, lengths, source, target, dtype)
        assert sorted(arrived) == target.rows_of(rank.rank)
        for row, values in arrived.items():
            assert values.dtype == dtype and torch.equal(values, content[row].to(dtype))

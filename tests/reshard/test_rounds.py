"""Rounds of whole jobs, played through in one process: they fit, they pair up, nothing is lost."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
from reshard_worlds import model_world

from megarl.errors import PlanError
from megarl.layout import Box, Plan, Transfer, make_plan
from megarl.reshard.rounds import RELAY_DELAY, Round, Vector, make_rounds

RANKS = 8
NODES = [0, 0, 1, 1, 2, 2, 3, 3]
PLACEMENTS = model_world(tp=2, pp=2, dp=1, rollout_tp=2, world=RANKS, nodes=NODES, tied=True)


class Meeting:
    """Reductions over threads that stand for ranks."""

    def __init__(self, size: int) -> None:
        self._barrier = threading.Barrier(size)
        self._said: dict[int, Vector] = {}

    def of(self, rank: int) -> Callable[..., Vector]:
        """This rank's `agree`."""

        def agree(vector: Vector, *, largest: bool) -> Vector:
            self._said[rank] = vector
            self._barrier.wait()
            reduce = np.maximum if largest else np.minimum
            answer = reduce.reduce([self._said[one] for one in sorted(self._said)])
            self._barrier.wait()
            return np.array(answer)

        return agree


def rounds_of_all(capacity: int, grain: int, alone: int) -> tuple[Plan, list[tuple[Round, ...]]]:
    plan = make_plan(
        PLACEMENTS.sources, PLACEMENTS.destinations, node_of=NODES.__getitem__, grain=grain
    )
    meeting, found = Meeting(RANKS), [()] * RANKS

    def one(rank: int) -> None:
        found[rank] = make_rounds(plan, rank, capacity, meeting.of(rank), alone)

    threads = [threading.Thread(target=one, args=(rank,)) for rank in range(RANKS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return plan, found


@pytest.mark.parametrize("capacity", [400, 1500, 1 << 20])
@pytest.mark.parametrize("grain", [8, 1 << 16])
@pytest.mark.parametrize("alone", [64, 1 << 16])
def test_rounds(capacity: int, grain: int, alone: int) -> None:
    plan, rounds = rounds_of_all(capacity, grain, alone)
    assert len({len(each) for each in rounds}) == 1
    assert len(rounds[0]) == 1 + RELAY_DELAY or capacity < 1 << 20
    arrived: dict[tuple[int, str, Box], int] = {}
    seen: Counter[tuple[int, int, str, int]] = Counter()
    for index in range(len(rounds[0])):
        for rank in range(RANKS):
            now = rounds[rank][index]
            assert sum(message.numel for message in now.sends) <= capacity
            assert sum(message.numel for message in now.receives) <= capacity
            for message in now.sends:
                there = rounds[message.peer][index].receives
                ours = [m.transfers for m in now.sends if m.peer == message.peer]
                assert ours == [m.transfers for m in there if m.peer == rank]
                assert len(message.transfers) == 1 or all(
                    t.box.numel < alone for t in message.transfers
                )
            for t in (t for message in now.receives for t in message.transfers):
                seen[t.src, t.dst, t.tensor, t.relay] += t.box.numel
                if t.relay:
                    assert arrived[t.src, t.tensor, t.box] + RELAY_DELAY <= index
                else:
                    arrived[t.dst, t.tensor, t.box] = index
    wanted: Counter[tuple[int, int, str, int]] = Counter()
    for t in plan.transfers:
        wanted[t.src, t.dst, t.tensor, t.relay] += t.box.numel if t.src != t.dst else 0
    assert seen == +wanted
    assert any(t.relay for t in plan.transfers)


def test_a_row_that_does_not_fit() -> None:
    def alone(vector: Vector, *, largest: bool) -> Vector:
        return vector

    sent = Transfer("w", Box((0, 0), (4, 90)), 0, 1, "w", 0, (90, 1), "w", 0, (90, 1))
    plan = Plan((sent,), ((0, 0), (1, 360)), ("w",), "")
    assert len(make_rounds(plan, 0, 90, alone)) == 4
    with pytest.raises(PlanError, match="buffer_megabytes is too small: one row of w .*90 .*89"):
        make_rounds(plan, 0, 89, alone)

"""Pretraining, fine-tuning, reward models: killed and started again, they end as if never killed.

Compared bit for bit: the exported weights, every tensor of the last checkpoint (weights and Adam's
states), the schedule, all random generators, the data's order, and the metrics but for times, rates
and memory. The killed rank ends itself with SIGKILL, so that moments are met on slow machines too.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
from forked_runs import KILLED, ForkedRuns, Moment, difference, outcome
from stage_runs import STAGES, STEPS

pytestmark = pytest.mark.dist
MakeRuns = Callable[..., ForkedRuns]


def roll(dice: random.Random) -> Moment:
    """A moment after the first checkpoint."""
    rank, after_s = dice.randrange(2), dice.choice([0.0, dice.uniform(0.0, 0.05)])
    match dice.choice(["update", "evaluate", "save_checkpoint", "writing", "naming", "export"]):
        case "evaluate":
            return Moment(f"evaluate:{dice.choice([2, STEPS])}", after_s, rank)
        case "naming":  # two flushes of the folder's names for each checkpoint
            return Moment(f"naming:{dice.randrange(2, 2 * STEPS)}", 0.0, 0)
        case "export":
            return Moment(f"export:{STEPS}", after_s, rank)
        case "writing":
            return Moment(f"writing:{dice.randrange(2, STEPS + 1)}", after_s / 10, rank)
        case verb:
            return Moment(f"{verb}:{dice.randrange(2, STEPS + 1)}", after_s, rank)


def kills() -> list[Any]:
    slow = [(stage, seed) for seed, stage in enumerate(STAGES)]
    rare = [(STAGES[seed % 3], seed) for seed in range(3, 27)]
    return [
        *(pytest.param(*case, marks=pytest.mark.slow) for case in slow),
        *(pytest.param(*case, marks=pytest.mark.long) for case in rare),
    ]


@pytest.mark.parametrize(("stage", "seed"), kills())
def test_a_kill_changes_nothing(stage: str, seed: int, runs: MakeRuns, whole: Any) -> None:
    dice = random.Random(seed)
    moment, run = roll(dice), runs(stage, async_save=dice.random() < 0.5)
    print(f"seed {seed}: {moment}")  # noqa: T201
    statuses = run(moment=moment)
    assert statuses[moment.rank] == KILLED and 0 not in statuses, run.output()
    assert run.seconds_until_ended() < 30 and run.says_who_is_gone(), run.output()
    run.to_the_end()
    assert difference(outcome(run.run_dir, STEPS), whole(stage)) is None
    assert not list(run.run_dir.glob("**/*.partial"))

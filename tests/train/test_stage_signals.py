"""A stage that is asked to leave saves, leaves with 75, and goes on when it is started again."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

import pytest
from forked_runs import ForkedRuns, Moment, difference, outcome
from stage_runs import STEPS

pytestmark = pytest.mark.dist
TERM, USR1 = signal.SIGTERM, signal.SIGUSR1


@pytest.mark.parametrize(
    ("stage", "at", "number", "saved"),
    [
        # While it is still being built: the first step is made and saved.
        ("sft", "build:0", USR1, 1),
        pytest.param("sft", "evaluate:2", TERM, 2, marks=pytest.mark.slow),
        pytest.param("pretrain", "update:3", USR1, 3, marks=pytest.mark.slow),
        pytest.param("reward", "save_checkpoint:2", TERM, 3, marks=pytest.mark.slow),
    ],
)
def test_a_signal_to_one_rank(
    stage: str, at: str, number: signal.Signals, saved: int, runs: Callable[..., Any], whole: Any
) -> None:
    run: ForkedRuns = runs(stage, async_save=True)
    assert run(moment=Moment(at, rank=1, number=number)) == [75, 75], run.output()
    assert (run.run_dir / "requeue").read_text() == f"{saved}\n"
    assert run.steps()[-1] == saved
    run.to_the_end()
    assert not (run.run_dir / "requeue").exists()
    assert difference(outcome(run.run_dir, STEPS), whole(stage)) is None


@pytest.mark.slow
@pytest.mark.parametrize("number", [TERM, USR1], ids=["SIGTERM", "SIGUSR1"])
def test_a_signal_at_the_end_changes_nothing(
    number: signal.Signals, runs: Callable[..., Any], whole: Any
) -> None:
    """The last step is saved by then, and what is left is written."""
    run: ForkedRuns = runs("sft")
    run_to_end = run(moment=Moment(f"export:{STEPS}", rank=0, number=number))
    assert run_to_end == [0, 0], run.output()
    assert not (run.run_dir / "requeue").exists()
    assert difference(outcome(run.run_dir, STEPS), whole("sft")) is None

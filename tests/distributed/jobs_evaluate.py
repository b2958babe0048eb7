"""Jobs that evaluate while they train."""

from __future__ import annotations

from parts import RoleSpec, run_plan
from worker import Rank

from megarl.config.schema import Config
from megarl.train.build import build_run
from megarl.train.driver import train
from megarl.train.finish import close_run, finish_run


def evaluated_run(
    rank: Rank, config: Config, path: str, actor: RoleSpec
) -> dict[int, dict[str, float]]:
    """Train from start, or from the newest checkpoint, to the report; step -> what was measured."""
    run = build_run(config, run_plan(path, actor), rank.universe, rank.control)
    train(run)
    finish_run(run)
    close_run(run)
    return {step: found.metrics for step, found in run.evaluations.items()}

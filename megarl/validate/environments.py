"""Environments: can this run's engines play episodes of several turns?"""

from __future__ import annotations

from megarl.config.schema import Config
from megarl.errors import ConfigError
from megarl.mesh.run_plan import RunPlan


def check_environment(config: Config, plan: RunPlan) -> None:
    """ConfigError for engines that only answer once."""
    name, rollout = config.environment.function, config.rollout
    if name is None:
        return
    if plan.rollout_ranks and plan.replica.size > 1:
        raise ConfigError(
            f"environment.function is {name} and a rollout replica has {plan.replica.size} ranks, "
            "which could not agree on what an environment said: take replicas of one rank, or "
            "rollout.engine=server, where a server may have any number"
        )
    if rollout.max_staleness:
        raise ConfigError(
            f"environment.function is {name} and rollout.max_staleness is {rollout.max_staleness}: "
            "episodes are not played ahead of their step yet; set it to 0"
        )

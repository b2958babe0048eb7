"""Jobs that train: the real driver over scripted or real rollouts."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any
from unittest import mock

from parts import RoleSpec, run_plan
from torch import Tensor
from worker import Rank

from megarl.config.schema import Config
from megarl.errors import RunError
from megarl.observe.metrics_file import read_metrics
from megarl.roles.actor import mini_batch_weights
from megarl.train.build import build_run
from megarl.train.driver import train
from megarl.train.phases import compute_advantages, generate, score, sync_weights, update


def train_run(
    rank: Rank,
    config: Config,
    path: str,
    actor: RoleSpec,
    critic: RoleSpec | None,
    reference: RoleSpec | None,
    rollout_tp: int,
    reward: tuple[str, RoleSpec] | None = None,
    rollout_ranks: tuple[int, ...] = (),
) -> dict[int, dict[str, float]] | None:
    """Train from start to end; step -> metrics from step 1 on, on universe rank 0."""
    plan = run_plan(path, actor, critic, reference, rollout_tp, reward, rollout_ranks)
    run = build_run(config, plan, rank.universe, rank.control)
    train(run)
    if config.rollout.engine == "vllm" and run.rollout.here:
        rank.kept["engine"] = run.rollout.engine
    if run.books.logger is None:
        return None
    run.books.logger.close()
    found: dict[int, dict[str, Any]] = read_metrics(f"{config.run.dir}/metrics.jsonl")
    assert found.pop(0) == {"data/prompts": len(run.prompts), "data/prompts_dropped": 0}
    return found


def train_with_local_denominators(rank: Rank, *arguments: Any) -> Any:
    """`train_run` with each rank's loss a mean over its own tokens, averaged over the ranks."""

    def local(batch: Any, rows: tuple[int, ...], mode: str, norm: int, *kept: Any) -> Tensor:
        weights = mini_batch_weights(batch, rows, mode, norm, *kept)
        return weights / weights.sum() / batch.dealt.layout.dp

    with (
        mock.patch("megarl.roles.actor.mini_batch_weights", local),
        mock.patch("megarl.roles.critic.mini_batch_weights", local),
    ):
        return train_run(rank, *arguments)


def train_with_a_stale_replica(
    rank: Rank, config: Config, path: str, actor: RoleSpec, rollout_tp: int
) -> str:
    """The second replica never commits the second sync; what the next step raises."""
    run = build_run(
        config, run_plan(path, actor, actor, actor, rollout_tp), rank.universe, rank.control
    )
    rank.kept["engine"] = run.rollout.engine
    sync_weights(run)
    run.actor.weight_version += 1  # as an update would
    with mock.patch.object(run.weight_sync.canary, "check"):
        engine = run.rollout.engine
        missed = rank.rank >= rollout_tp
        with mock.patch.object(engine, "commit", _forget) if missed else nullcontext():
            sync_weights(run)
    if missed:
        engine.commit(1)
    return _refusal(lambda: score(run, generate(run, run.next_prompts())))


def train_without_the_second_sync(rank: Rank, config: Config, path: str, actor: RoleSpec) -> str:
    """One whole step but for the sync at its end; what the next step raises."""
    plan = run_plan(path, actor, actor, actor)
    run = build_run(config, plan, rank.universe, rank.control)
    sync_weights(run)
    update(run, compute_advantages(run, score(run, generate(run, run.next_prompts()))))
    return _refusal(lambda: score(run, generate(run, run.next_prompts())))


def train_on_broken(rank: Rank, config: Config, path: str, actor: RoleSpec, what: str) -> str:
    """What a run raises whose `what` (weights, gradients, nothing) is broken."""
    plan = run_plan(path, actor)
    run = build_run(config, plan, rank.universe, rank.control)
    if what == "weights":
        for parameter in run.actor.engine.parameters().values():
            parameter.data.fill_(float("nan"))
    scale = mock.patch(
        "megarl.models.schedule.undo_schedule_scale", lambda loss, scale: loss * float("inf")
    )
    with scale if what == "gradients" else nullcontext():
        return _refusal(lambda: train(run))


def _refusal(work: Callable[[], object]) -> str:
    """The message of the RunError that `work` raises."""
    try:
        work()
    except RunError as error:
        return str(error)
    return ""


def _forget(version: int) -> None:
    """Commit nothing."""

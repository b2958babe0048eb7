"""Jobs of the reward model's tests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch
from parts import RoleSpec, run_plan
from worker import Rank

from megarl.config.schema import Config
from megarl.errors import RunError
from megarl.mesh.layout import MeshLayout
from megarl.rewards.judging import WeightedReward
from megarl.train.build import Builder, make_evaluation
from megarl.train.evaluate import evaluate
from megarl.train.scoring import Score, Scorer
from megarl.types import Prompt, Rollout, RolloutRequest, SamplingSpec

EOS_PENALTY = 0.75


def scores(
    rank: Rank,
    actor: str,
    path: str,
    layout: MeshLayout,
    rollouts: list[Rollout],
    function: float,
    model_coef: float,
) -> dict[int, float]:
    """Row -> reward of the rows that lie on this rank: a constant, and `model_coef` x the model."""
    scorer = _scorer(rank, actor, path, layout, function, model_coef)
    # Groups are dealt in turn, as replicas deal them; the last rank of several has none.
    world = max(rank.universe.size - 1, 1)
    mine = [one for one in rollouts if one.request.group % world == rank.rank]
    return {r.request.row: s.reward for r, s in zip(mine, _judge(scorer, mine), strict=True)}


def refusal_of_a_broken_model(rank: Rank, actor: str, path: str, rollouts: list[Rollout]) -> str:
    """What a reward model says whose head has become NaN."""
    scorer = _scorer(rank, actor, path, MeshLayout(), 0.0, 1.0)
    assert scorer.model is not None
    with torch.no_grad():
        scorer.model.engine.parameters()["0/value_head.weight"].fill_(float("nan"))
    try:
        _judge(scorer, rollouts)
    except RunError as error:
        return str(error)
    raise AssertionError("the score was taken")


def evaluations(
    rank: Rank, actor: str, path: str, rollouts: list[Rollout]
) -> list[tuple[dict[str, float], list[bool | None]]]:
    """Metrics and right ones of answers: a function and the model, then the model alone.

    Row by row the same rollouts, greedily and, from the first on again, as two samples each.
    """
    both = _scorer(rank, actor, path, MeshLayout(), 1.0, 0.0)

    def generate(requests: Sequence[RolloutRequest], _: Any, heard: Any) -> list[Rollout]:
        made = [replace(rollouts[one.row % len(rollouts)], request=one) for one in requests]
        heard(made)
        return made

    engine: Any = SimpleNamespace(generate=generate)
    prompts = [one.request.prompt for one in rollouts]
    spec = replace(make_evaluation(Config(), SamplingSpec()), num_samples=2, pass_at=(1, 2))
    found = []
    for scorer in (both, replace(both, functions=(), judges=False)):
        result = evaluate(engine, rank.control, scorer, prompts, spec)
        found.append((result.metrics, [one.right for one in result.answers]))
    return found


def _judge(scorer: Scorer, rollouts: list[Rollout]) -> list[Score]:
    with scorer.judging() as judging:
        judging.add(rollouts)
        return scorer.complete(rollouts, judging.finish())


def _scorer(
    rank: Rank, actor: str, path: str, layout: MeshLayout, function: float, model_coef: float
) -> Scorer:
    everyone = RoleSpec(tuple(range(rank.universe.size)), layout)
    config = Config()
    config.reward.model.path, config.reward.model_coef = path, model_coef
    config.algorithm.micro_batch_size = 3
    built = Builder(config, run_plan(actor, everyone, reward=(path, everyone)), rank.universe)
    found = built.scorer(rank.control, None)
    assert not found.functions  # a model alone needs no function

    def constant(prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float]:
        return [function] * len(prompts)

    functions = (WeightedReward("constant", constant, 1.0),)
    given = functions, found.model, model_coef, EOS_PENALTY
    return Scorer(rank.universe, rank.control, *given)

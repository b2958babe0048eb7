"""Samples of a step with their rewards: rounds of generation until there are enough of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from megarl.algorithms.advantages import estimator
from megarl.algorithms.shaping import informative_groups
from megarl.data.seeds import step_seeds
from megarl.errors import RunError
from megarl.mesh.rows import RowMap
from megarl.train.ahead import Ahead, staleness_metrics
from megarl.train.run import Run
from megarl.train.scoring import Score
from megarl.types import Prompt, Rollout, RolloutRequest, RowTable


@dataclass
class Samples:
    """A step's samples: the table on every rank, tokens and log-probs on the ranks that own them.

    Rows are numbered from 0, those of a prompt behind each other.
    """

    table: RowTable
    source: RowMap
    rollouts: dict[int, Rollout]
    """Row -> rollout, of this rank's own."""
    process: dict[int, Tensor] | None
    """Row -> float [response], NaN where a token ends no step, of this rank's own; None without
    process rewards on any rank."""
    metrics: dict[str, float]


class Sampled(NamedTuple):
    """What all ranks know of one sample."""

    row: int
    """Number within the step's rounds; below 0 for a greedy answer."""
    group: int
    rank: int
    """Who owns it."""
    prompt_length: int
    response_length: int
    reward: float
    verdict: float | None
    parts: Mapping[str, float]
    finished: bool
    weight_version: int
    source: str
    learned: int
    """Response tokens that the model made."""
    steps_reward: float | None
    """Sum of the process rewards; None without any."""


class _Rounds:
    """What was sampled so far in a step."""

    def __init__(self) -> None:
        self.prompts: list[Prompt] = []
        self.samples: list[Sampled] = []
        self.greedy: list[Sampled] = []
        self.own: dict[int, tuple[Rollout, Score]] = {}


def generate(run: Run, prompts: Sequence[Prompt]) -> Samples:
    """Sample `n_samples_per_prompt` responses to each prompt; every replica serves its share.

    Rewards are computed meanwhile. Under `algorithm.filter_groups` further prompts are drawn for
    those whose samples do not differ. Under `rollout.max_staleness` servers began before, and go
    on for the steps to come: the samples are those of the prompts that were ready first. RunError
    for a sample of weights that are not the actor's, or are too old.
    """
    rounds = _Rounds()
    if run.ahead is not None:
        metrics = _collect(run, run.ahead, rounds)
        samples = _take(run, rounds, range(len(rounds.prompts)))
        samples.metrics |= metrics
        return samples
    if not run.config.algorithm.filter_groups.enable:
        _sample(run, rounds, prompts, sleeps=True)
        return _take(run, rounds, range(len(prompts)))
    differ, number = _sample_until(run, rounds, prompts)
    wanted, kept, drawn = len(prompts), len(differ), len(rounds.prompts)
    others = sorted(set(range(drawn)) - set(differ))
    samples = _take(run, rounds, sorted((differ + others)[:wanted]))
    samples.metrics |= {
        "filter_groups/rounds": float(number),
        "filter_groups/kept": kept / drawn,
        "filter_groups/surplus": float(max(kept - wanted, 0)),
        "filter_groups/filled": float(max(wanted - kept, 0)),
        "tokens/generated": float(sum(one.response_length for one in rounds.samples)),
    }
    return samples


def _sample_until(run: Run, rounds: _Rounds, prompts: Sequence[Prompt]) -> tuple[list[int], int]:
    """Rounds until as many groups differ as there are prompts: those that do, and the rounds."""
    wanted, drawn = len(prompts), prompts
    limit = run.config.algorithm.filter_groups.max_num_gen_batches
    for number in range(1, limit + 1):
        _sample(run, rounds, drawn, sleeps=number == limit)
        differ = _differing(run, rounds)
        if len(differ) >= wanted or number == limit:
            break
        drawn = run.next_prompts(_how_many(len(differ), len(rounds.prompts), wanted))
    if number < limit:
        with run.verb("generate"):
            run.rollout.sleep()
    return differ, number


def _collect(run: Run, ahead: Ahead, rounds: _Rounds) -> dict[str, float]:
    """A step's samples out of those that are made ahead, and how old they are."""
    version, mine = run.actor.weight_version, dict[int, list[Rollout]]()
    with run.scorer.judging() as judging:
        with run.verb("generate"):
            facts: tuple[list[int], dict[str, float]] = [], {}
            if run.rollout.here:
                mine = ahead.collect(run.step, version, judging.add)
                metrics = staleness_metrics(list(mine.values()), version)
                facts = sorted(mine), {**metrics, "async/groups_dropped": float(ahead.dropped)}
            places, metrics = run.control.gather(facts)[run.rollout.lead_of(0)]
        rounds.prompts = [ahead.prompt_at(place) for place in places]
        ahead.take(places)
        ahead.dropped = int(metrics["async/groups_dropped"])
        own = [rollout for place in sorted(mine) for rollout in mine[place]]
        rollouts = [_numbered(one, row, len(own) // len(places)) for row, one in enumerate(own)]
        with run.verb("reward"):
            said = judging.finish()
            rows = {row: said[one.request.row] for row, one in enumerate(own)}
            _book(run, rounds, rollouts, run.scorer.complete(rollouts, rows))
    return metrics


def _numbered(rollout: Rollout, row: int, count: int) -> Rollout:
    """A sample as the row of a step."""
    return replace(rollout, request=replace(rollout.request, row=row, group=row // count))


def _sample(run: Run, rounds: _Rounds, prompts: Sequence[Prompt], *, sleeps: bool) -> None:
    """Answers to further prompts, and what they are worth."""
    first = len(rounds.prompts)
    rounds.prompts += prompts
    requests, greedy = _requests(run, rounds.prompts, first)
    with run.scorer.judging() as judging:
        with run.verb("generate"):
            rollouts = run.rollout.generate(requests, run.sampling, judging.add, greedy=greedy)
            if sleeps:
                run.rollout.sleep()
        with run.verb("reward"):
            scores = run.scorer.complete(rollouts, judging.finish())
            found = _book(run, rounds, rollouts, scores)
    expected = sorted(request.row for request in (*requests, *greedy))
    if sorted(one.row for one in found) != expected:
        raise RunError(f"rows {sorted(one.row for one in found)} came back, not {expected}")


def _book(
    run: Run, rounds: _Rounds, rollouts: Sequence[Rollout], scores: Sequence[Score]
) -> list[Sampled]:
    """Tell all ranks of this one's samples; what is known of all of them."""
    both = list(zip(rollouts, scores, strict=True))
    found = [one for answer in run.control.gather(_facts(run, both)) for one in answer]
    _check_versions(run, found)
    rounds.own |= {rollout.request.row: (rollout, score) for rollout, score in both}
    rounds.samples += sorted(one for one in found if one.row >= 0)
    rounds.greedy += sorted((one for one in found if one.row < 0), reverse=True)
    return found


def _requests(
    run: Run, prompts: Sequence[Prompt], first: int
) -> tuple[list[RolloutRequest], list[RolloutRequest]]:
    """Requests to the prompts from `first` on, and those for greedy answers where they are read."""
    count = run.config.data.n_samples_per_prompt
    seeds = step_seeds(run.config.run.seed, run.step, [p.prompt_id for p in prompts], count)
    groups = range(first, len(prompts))
    requests = [
        RolloutRequest(group * count + index, group, prompts[group], seeds[group][index])
        for group in groups
        for index in range(count)
    ]
    if not estimator(run.config.algorithm.adv_estimator).needs_greedy:
        return requests, []
    return requests, [RolloutRequest(-1 - group, group, prompts[group], 0) for group in groups]


def _facts(run: Run, own: Sequence[tuple[Rollout, Score]]) -> list[Sampled]:
    return [
        Sampled(
            rollout.request.row,
            rollout.request.group,
            run.universe.rank,
            len(rollout.request.prompt.token_ids),
            len(rollout.response_ids),
            score.reward,
            score.verdict,
            score.parts,
            rollout.finish_reason == "stop",
            rollout.weight_version,
            rollout.request.prompt.source,
            sum(rollout.learned) if rollout.learned else len(rollout.response_ids),
            sum(score.steps.values()) if score.steps else None,
        )
        for rollout, score in own
    ]


def _check_versions(run: Run, found: Sequence[Sampled]) -> None:
    newest, staleness = run.actor.weight_version, run.config.rollout.max_staleness
    allowed = range(newest - staleness, newest + 1)
    stale = sorted({one.weight_version for one in found} - set(allowed))
    if stale:
        raise RunError(
            f"samples were made by weight version {stale[0]}, the actor is at "
            f"{run.actor.weight_version}: a sync was left out, or did not reach every engine"
        )


def _differing(run: Run, rounds: _Rounds) -> list[int]:
    """Groups whose samples are not all right or all wrong, or not of one reward."""
    if run.config.algorithm.filter_groups.metric == "accuracy":
        worth = [float(bool(_is_right(run, one))) for one in rounds.samples]
    else:
        worth = [one.reward + (one.steps_reward or 0.0) for one in rounds.samples]
    group = torch.tensor([one.group for one in rounds.samples])
    differ = informative_groups(torch.tensor(worth, dtype=torch.float64), group)
    return sorted(set(group[differ].tolist()))


def _how_many(kept: int, drawn: int, wanted: int) -> int:
    """Prompts of the next round: enough, if as many of them differ as did so far."""
    share = max(kept / drawn, 0.1)
    return min(math.ceil((wanted - kept) / share), wanted)


def _is_right(run: Run, one: Sampled) -> bool | None:
    return run.scorer.is_right(one.verdict, one.finished, run.config.reward.success_reward)


def _take(run: Run, rounds: _Rounds, groups: Sequence[int]) -> Samples:
    """The samples of the chosen groups, numbered anew, with rewards as they are learned from."""
    number = {group: index for index, group in enumerate(groups)}
    taken = [one for one in rounds.samples if one.group in number]
    greedy = [one for one in rounds.greedy if one.group in number]
    table = _table(run, taken, number)
    metrics = _metrics(table)
    run.shaping.observe(table)
    table = run.shaping.apply(table)
    if run.shaping.is_on:
        metrics["reward_shaped_mean"] = float(table.reward.double().mean())
    if greedy:
        baseline = run.shaping.apply(_table(run, greedy, number)).reward
        baseline = baseline + torch.tensor([one.steps_reward or 0.0 for one in greedy])
        table = replace(table, baseline=baseline[table.group.long()])
    rows = {one.row: row for row, one in enumerate(taken)}
    own = {rows[old]: both for old, both in rounds.own.items() if old in rows}
    process = None
    if any(one.steps_reward is not None for one in taken):
        sums = [one.steps_reward or 0.0 for one in taken]
        metrics["process_reward_mean"] = sum(sums) / len(sums)
        process = {row: _token_rewards(*both) for row, both in own.items()}
    rollouts = {row: rollout for row, (rollout, _) in own.items()}
    return Samples(table, RowMap(tuple(one.rank for one in taken)), rollouts, process, metrics)


def _table(run: Run, samples: Sequence[Sampled], number: Mapping[int, int]) -> RowTable:
    right = [_is_right(run, one) for one in samples]
    names = samples[0].parts if samples else ()
    parts = {name: torch.tensor([one.parts[name] for one in samples]) for name in names}
    own = [one.learned for one in samples]
    all_learned = own == [one.response_length for one in samples]
    return RowTable(
        learned_length=None if all_learned else torch.tensor(own, dtype=torch.int32),
        group=torch.tensor([number[one.group] for one in samples], dtype=torch.int32),
        prompt_length=torch.tensor([one.prompt_length for one in samples], dtype=torch.int32),
        response_length=torch.tensor([one.response_length for one in samples], dtype=torch.int32),
        reward=torch.tensor([one.reward for one in samples], dtype=torch.float32),
        finished=torch.tensor([one.finished for one in samples], dtype=torch.bool),
        weight_version=torch.tensor([one.weight_version for one in samples], dtype=torch.int32),
        source=tuple(one.source for one in samples),
        right=None if None in right else torch.tensor(right, dtype=torch.bool),
        parts=parts if len(parts) > 1 else {},
    )


def _token_rewards(rollout: Rollout, score: Score) -> Tensor:
    """float32 [response], NaN where a token ends no step."""
    found = torch.full((len(rollout.response_ids),), torch.nan)
    for token, reward in score.steps.items():
        found[token] = reward
    return found


def _metrics(table: RowTable) -> dict[str, float]:
    """Means of the step's rewards and lengths, and by source where there are several."""
    lengths = table.response_length.double()
    metrics = {
        "reward_mean": float(table.reward.double().mean()),
        "reward_std": float(table.reward.double().std(unbiased=False)),
        "response_length/mean": float(lengths.mean()),
        "response_length/max": float(lengths.max()),
        "response_length/clip_ratio": float((~table.finished).double().mean()),
        "tokens/prompt": float(table.prompt_length.sum()),
        "tokens/response": float(table.response_length.sum()),
    }
    columns = {f"reward/{name}": said for name, said in table.parts.items()}
    if table.right is not None:
        columns["train_accuracy"] = table.right
    metrics |= {name: float(values.double().mean()) for name, values in columns.items()}
    sources = sorted(set(table.source))
    for source in sources if len(sources) > 1 else ():
        own = torch.tensor([each == source for each in table.source])
        for name, values in (columns | {"reward_mean": table.reward}).items():
            metrics[f"{name}/{source}"] = float(values[own].double().mean())
    return metrics

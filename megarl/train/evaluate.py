"""Evaluation on held-out prompts: a greedy answer to each, and samples beside it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from megarl.algorithms.eval_metrics import Marks, answer_metrics, measure
from megarl.algorithms.evaluation import majority_vote
from megarl.data.seeds import evaluation_seed
from megarl.mesh.control import Control
from megarl.roles.rollout import RolloutRole
from megarl.train.scoring import Scorer
from megarl.types import Prompt, Rollout, RolloutRequest, SamplingSpec


@dataclass(frozen=True, slots=True)
class EvaluationSpec:
    """How held-out prompts are answered, and what counts."""

    greedy: SamplingSpec
    sampled: SamplingSpec
    num_samples: int
    """Of each prompt, beside the greedy answer."""
    pass_at: tuple[int, ...]
    """The k of pass@k."""
    run_seed: int
    success_reward: float
    """The function's reward from which an answer that ended by itself is right."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer to a held-out prompt."""

    row: int
    """The prompt's position."""
    sample: int | None
    """Its number among the prompt's samples, from 0; None: the greedy answer."""
    text: str
    read: str | None
    """What the reward reads from a sample, for the vote; None where it was cut off, or holds no
    answer, and of greedy answers."""
    reward: float
    finished: bool
    right: bool | None
    """The function calls it a success, and it ended by itself; None without a function: where a
    reward model's scores would begin to be right, nobody knows."""
    token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What came out; texts are on universe rank 0 alone."""

    metrics: dict[str, float]
    """See `megarl.algorithms.eval_metrics`; equal on all ranks."""
    answers: tuple[Answer, ...]
    """The greedy ones, in the order of the prompts; () elsewhere."""
    samples: tuple[Answer, ...]
    """By prompt, then by number; () elsewhere."""


def evaluate(
    rollout: RolloutRole,
    control: Control,
    scorer: Scorer,
    prompts: Sequence[Prompt],
    spec: EvaluationSpec,
    on_answered: Callable[[Sequence[Rollout]], None] | None = None,
) -> Evaluation:
    """Answer every prompt (at least one) and score the answers; all ranks call it together.

    A sample's seed is the same in every evaluation of a run, wherever it is made. on_answered hears
    of the answers that a step of this rank's replica finished.
    """
    count = spec.num_samples
    greedy = [RolloutRequest(row, row, prompt, 0) for row, prompt in enumerate(prompts)]
    answers = _answer(rollout, scorer, greedy, spec, on_answered, sampled=False)
    samples: list[Answer] = []
    if count:
        sampled = [
            RolloutRequest(row * count + index, row, prompt, seed)
            for row, prompt in enumerate(prompts)
            for index, seed in enumerate(_seeds(spec, prompt))
        ]
        samples = _answer(rollout, scorer, sampled, spec, on_answered, sampled=True)
    # All answers to a prompt are on one rank: it tells the others what they are worth.
    own = _marks(prompts, answers, samples)
    found = {row: mark for rank in control.gather(own) for row, mark in rank.items()}
    marks = [found[row] for row in range(len(prompts))]
    judged = all(one.right is not None for one in marks)
    metrics = measure(marks, answer_metrics(count, spec.pass_at, judged=judged))
    return Evaluation(metrics, _collect(control, answers), _collect(control, samples))


def _seeds(spec: EvaluationSpec, prompt: Prompt) -> list[int]:
    count, seed = spec.num_samples, spec.run_seed
    return [evaluation_seed(seed, prompt.prompt_id, index) for index in range(count)]


def _answer(
    rollout: RolloutRole,
    scorer: Scorer,
    requests: Sequence[RolloutRequest],
    spec: EvaluationSpec,
    on_answered: Callable[[Sequence[Rollout]], None] | None,
    *,
    sampled: bool,
) -> list[Answer]:
    """This rank's answers, in order, judged while others are made; all ranks call it together."""
    with scorer.judging() as judging:

        def hear(new: Sequence[Rollout]) -> None:
            judging.add(new)
            if on_answered is not None:
                on_answered(new)

        rollouts = rollout.generate(requests, spec.sampled if sampled else spec.greedy, hear)
        scores = scorer.complete(rollouts, judging.finish())
    finished = [one for one in rollouts if one.finish_reason == "stop"]
    texts = scorer.read_answers(finished) if sampled else [None] * len(finished)
    read = {one.request.row: text for one, text in zip(finished, texts, strict=True)}
    answers = []
    for one, score in zip(rollouts, scores, strict=True):
        row, index = divmod(one.request.row, spec.num_samples if sampled else 1)
        ended = one.finish_reason == "stop"
        answers.append(
            Answer(
                row=row,
                sample=index if sampled else None,
                text=one.text,
                read=read.get(one.request.row),
                reward=score.reward,
                finished=ended,
                right=scorer.is_right(score.verdict, ended, spec.success_reward),
                token_ids=one.response_ids,
            )
        )
    return answers


def _marks(
    prompts: Sequence[Prompt], answers: Sequence[Answer], samples: Sequence[Answer]
) -> dict[int, Marks]:
    """Row of a prompt -> what this rank's answers to it are worth."""
    sampled: dict[int, list[Answer]] = {one.row: [] for one in answers}
    for one in samples:
        sampled[one.row].append(one)
    found = {}
    for one in answers:
        right = [bool(sample.right) for sample in sampled[one.row]]
        found[one.row] = Marks(
            source=prompts[one.row].source,
            reward=one.reward,
            finished=one.finished,
            right=one.right,
            num_samples=len(right),
            num_right=sum(right),
            majority=majority_vote([sample.read for sample in sampled[one.row]], right),
        )
    return found


def _collect(control: Control, answers: Sequence[Answer]) -> tuple[Answer, ...]:
    """All ranks' answers, by prompt and number, on rank 0; () elsewhere."""
    found = [one for rank in control.collect(answers) for one in rank]
    return tuple(sorted(found, key=lambda one: (one.row, one.sample or 0)))

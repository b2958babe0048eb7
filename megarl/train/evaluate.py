"""Greedy evaluation on held-out prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from megarl.mesh.control import Control
from megarl.roles.rollout import RolloutRole
from megarl.train.scoring import Scorer
from megarl.types import Prompt, Rollout, RolloutRequest, SamplingSpec


@dataclass(frozen=True, slots=True)
class Answer:
    """One held-out prompt's greedy answer."""

    row: int
    prompt: str
    question: str
    """What the prompt asks, without its chat template."""
    label: str
    text: str
    reward: float
    finished: bool
    source: str
    right: bool | None
    """The function calls it a success, and it ended by itself; None without a function: where a
    reward model's scores would begin to be right, nobody knows."""
    token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """All answers, in the order of the prompts; equal on all ranks."""

    answers: tuple[Answer, ...]

    @property
    def accuracy(self) -> float | None:
        """Share of right answers; None where nothing says which are."""
        return _share_right(self.answers)

    def metrics(self) -> dict[str, float]:
        """Mean reward, and accuracy where there is one, in all and per source."""
        count = max(len(self.answers), 1)
        out: dict[str, float | None] = {
            "eval/accuracy": self.accuracy,
            "eval/reward_mean": sum(answer.reward for answer in self.answers) / count,
            "eval/finished": sum(answer.finished for answer in self.answers) / count,
        }
        sources = sorted({answer.source for answer in self.answers})
        for source in sources if len(sources) > 1 else []:
            own = [answer for answer in self.answers if answer.source == source]
            out[f"eval/accuracy/{source}"] = _share_right(own)
        return {name: value for name, value in out.items() if value is not None}


def _share_right(answers: Sequence[Answer]) -> float | None:
    judged = [answer.right for answer in answers if answer.right is not None]
    return sum(judged) / len(judged) if judged else None


def evaluate(
    rollout: RolloutRole,
    control: Control,
    scorer: Scorer,
    prompts: Sequence[Prompt],
    sampling: SamplingSpec,
    success_reward: float,
    on_answered: Callable[[Sequence[Rollout]], None] | None = None,
) -> Evaluation:
    """Answer every prompt greedily and score the answers; all ranks call it together.

    on_answered hears of the answers that a step of this rank's replica finished.
    """
    requests = [RolloutRequest(row, row, prompt, 0) for row, prompt in enumerate(prompts)]
    rollouts = rollout.generate(requests, sampling.greedy(), on_answered)
    scores = scorer.judge(rollouts)
    own = [
        Answer(
            one.request.row,
            one.request.prompt.text,
            one.request.prompt.question or one.request.prompt.text,
            one.request.prompt.label,
            one.text,
            score.reward,
            one.finish_reason == "stop",
            one.request.prompt.source,
            scorer.is_right(score.verdict, one.finish_reason == "stop", success_reward),
            one.response_ids,
        )
        for one, score in zip(rollouts, scores, strict=True)
    ]
    answers = [answer for rank in control.gather(own) for answer in rank]
    return Evaluation(tuple(sorted(answers, key=lambda answer: answer.row)))

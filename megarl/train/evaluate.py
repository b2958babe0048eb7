"""Greedy evaluation on held-out prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from megarl.mesh.control import Control
from megarl.roles.rollout import RolloutRole
from megarl.train.scoring import Scorer
from megarl.types import Prompt, RolloutRequest, SamplingSpec


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
    right: bool
    """The function (without one: the reward) calls it a success, and it ended by itself."""
    token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """All answers, in the order of the prompts; equal on all ranks."""

    answers: tuple[Answer, ...]

    @property
    def accuracy(self) -> float:
        """Share of right answers."""
        return sum(answer.right for answer in self.answers) / max(len(self.answers), 1)

    def metrics(self) -> dict[str, float]:
        """Accuracy and mean reward, in all and per source."""
        count = max(len(self.answers), 1)
        out = {
            "eval/accuracy": self.accuracy,
            "eval/reward_mean": sum(answer.reward for answer in self.answers) / count,
            "eval/finished": sum(answer.finished for answer in self.answers) / count,
        }
        sources = sorted({answer.source for answer in self.answers})
        for source in sources if len(sources) > 1 else []:
            own = [answer.right for answer in self.answers if answer.source == source]
            out[f"eval/accuracy/{source}"] = sum(own) / len(own)
        return out


def evaluate(
    rollout: RolloutRole,
    control: Control,
    scorer: Scorer,
    prompts: Sequence[Prompt],
    sampling: SamplingSpec,
    success_reward: float,
    on_answered: Callable[[int], None] | None = None,
) -> Evaluation:
    """Answer every prompt greedily and score the answers; all ranks call it together.

    on_answered hears how many answers a step of this rank's replica finished.
    """
    greedy = replace(sampling, temperature=0.0, top_p=1.0, top_k=-1)
    requests = [RolloutRequest(row, row, prompt, 0) for row, prompt in enumerate(prompts)]
    rollouts = rollout.generate(requests, greedy, on_answered)
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
            score.verdict >= success_reward - 1e-6 and one.finish_reason == "stop",
            one.response_ids,
        )
        for one, score in zip(rollouts, scores, strict=True)
    ]
    answers = [answer for rank in control.gather(own) for answer in rank]
    return Evaluation(tuple(sorted(answers, key=lambda answer: answer.row)))

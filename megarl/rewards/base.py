"""What a reward is, and the guard around calling one."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

from megarl.errors import MegaRLError, RunError
from megarl.types import Prompt, Rollout


@dataclass(frozen=True, slots=True)
class StepRewards:
    """A process reward: what the steps of a response are worth, and what the whole is worth."""

    steps: Sequence[tuple[int, float]]
    """(characters of the response up to the step's end, its reward), in order. A reward is given to
    the step's last token; one that ends with the text to the response's last token."""
    score: float = 0.0
    """Of the whole response, beside its steps'."""


class RewardFunction(Protocol):
    """Scores a batch of responses.

    Called with as many prompts as responses, on one rank of each replica, for some of a step's
    rows: a score must depend on its own prompt and response only. It may be slow or call a
    service: it is called in a thread, several times in a step, with what has been generated since
    the call before (`reward.overlap`). It must not use torch.distributed. Any function of this form
    will do. One with a method `check_prompts(prompts)` is asked, before a run starts, whether it
    can score the data: it raises DataError if not. One with a method `read_answer(prompt, response)
    -> str | None` says what a response answers, for majority votes: equal texts are the same
    answer, None is no answer. Several threads call it at the same time. Without it the response is
    its own answer.
    """

    def __call__(
        self, prompts: Sequence[Prompt], responses: Sequence[str]
    ) -> Sequence[float] | Sequence[StepRewards]:
        """One finite score per response, in order; or its steps' with the whole's."""


CULPRIT_S = 20.0
"""Seconds that are spent on finding which sample a reward failed on."""
LARGEST = 1e30
"""The largest reward: sums and weights of them stay finite in fp32."""
READERS = 16
"""Threads that read answers: a reader may be waiting for a process of its own."""


def score(
    reward: RewardFunction, name: str, rollouts: Sequence[Rollout]
) -> list[float] | list[StepRewards]:
    """The reward of each rollout, in order: all numbers, or all StepRewards.

    RunError, naming the reward called `name` and the sample where one is to blame, if the function
    raises, returns another number of scores, or a score that is not a finite number.
    """
    if not rollouts:
        return []
    prompts = [rollout.request.prompt for rollout in rollouts]
    try:
        returned = reward(prompts, [rollout.text for rollout in rollouts])
        is_many = isinstance(returned, Iterable) and not isinstance(returned, str | bytes)
        scores: list[object] = list(returned) if is_many else []
    except Exception as error:  # Whatever a user's function raises ends here, with its name.
        # What our own rewards say names the sample already, or is nobody's fault.
        where = "" if isinstance(error, MegaRLError) else _culprit(reward, rollouts)
        raise RunError(
            f"reward {name} raised {type(error).__name__} on {where or _span(rollouts)}: {error}"
        ) from error
    if not is_many:
        raise RunError(
            f"reward {name} returned {returned!r} for {len(rollouts)} responses "
            f"({_span(rollouts)}): it must return a list, one number per response"
        )
    if len(scores) != len(rollouts):
        raise RunError(
            f"reward {name} returned {len(scores)} scores for {len(rollouts)} responses "
            f"({_span(rollouts)}): it must return one per response"
        )
    both = list(zip(scores, rollouts, strict=True))
    if any(isinstance(value, StepRewards) for value in scores):
        return [_checked(value, name, rollout) for value, rollout in both]
    return [_finite(value, name, rollout) for value, rollout in both]


def _checked(value: object, name: str, rollout: Rollout) -> StepRewards:
    """Step rewards whose steps lie behind each other within the text."""
    if not isinstance(value, StepRewards):
        raise RunError(
            f"reward {name} gave {value!r} for {_sample(rollout)}, and StepRewards for others: "
            "give one kind for all"
        )
    try:
        given = [(int(end), worth) for end, worth in value.steps]
    except (TypeError, ValueError):
        raise RunError(
            f"reward {name} gave steps {value.steps!r} for {_sample(rollout)}: each must be "
            "(characters up to its end, reward)"
        ) from None
    ends = [0, *(end for end, _ in given), len(rollout.text)]
    for here, there in zip(ends, ends[1:], strict=False):
        if there < here:
            raise RunError(
                f"reward {name} gave a step that ends at character {there} after {here}, of "
                f"{len(rollout.text)}, for {_sample(rollout)}: ends must not fall, nor pass the "
                "end of the text"
            )
    steps = tuple((end, _finite(each, name, rollout)) for end, each in given)
    return StepRewards(steps, _finite(value.score, name, rollout))


def read_answers(
    reward: RewardFunction, name: str, rollouts: Sequence[Rollout]
) -> list[str | None]:
    """What each rollout answers, in order: by the reward's `read_answer`, or its text, stripped.

    RunError, naming the reward called `name` and the sample, if reading raises, or gives something
    that is neither text nor None.
    """
    read = getattr(reward, "read_answer", None)

    def answer(rollout: Rollout) -> str | None:
        if read is None:
            return rollout.text.strip() or None
        try:
            found = read(rollout.request.prompt, rollout.text)
        except Exception as error:  # As in `score`: the function is its author's.
            raise RunError(
                f"reward {name}: read_answer raised {type(error).__name__} on {_sample(rollout)}: "
                f"{error}"
            ) from error
        if found is None or isinstance(found, str):
            return found
        raise RunError(
            f"reward {name}: read_answer gave {found!r} for {_sample(rollout)}: it must give text, "
            "or None"
        )

    with ThreadPoolExecutor(READERS) as threads:
        return list(threads.map(answer, rollouts))


def _finite(value: object, name: str, rollout: Rollout) -> float:
    try:
        number = math.nan if isinstance(value, str) else float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, RuntimeError, OverflowError):
        number = math.nan
    if abs(number) <= LARGEST:
        return number
    raise RunError(
        f"reward {name} gave {value!r} for {_sample(rollout)}: a reward must be a finite number, "
        f"at most {LARGEST:.0e}"
    )


def _culprit(reward: RewardFunction, rollouts: Sequence[Rollout]) -> str:
    """The first sample that the reward cannot score alone; "" where it can score each.

    It is looked for as long as others may wait: a slow reward's is not found.
    """
    until = time.monotonic() + CULPRIT_S
    for rollout in rollouts:
        if time.monotonic() > until:
            break
        try:
            reward([rollout.request.prompt], [rollout.text])
        except Exception:  # As in `score`, whose error is the one reported.
            return _sample(rollout)
    return ""


def _sample(rollout: Rollout) -> str:
    row, prompt = rollout.request.row, rollout.request.prompt
    return (
        f"row {row} (prompt_id {prompt.prompt_id}, source {prompt.source!r}): response "
        f"{rollout.text[:80]!r}"
    )


def _span(rollouts: Sequence[Rollout]) -> str:
    first = rollouts[0].request
    sources = ", ".join(sorted({rollout.request.prompt.source for rollout in rollouts}))
    return (
        f"rows {first.row} to {rollouts[-1].request.row} "
        f"(first prompt_id {first.prompt.prompt_id}, sources {sources})"
    )

"""The metrics of evaluations: what each is called, and how it is made.

One table says both, so that a setting which names a metric is checked against what there will be.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from megarl.algorithms.evaluation import pass_at_k

TEXT_METRICS = ("loss", "probability")
"""Of texts that are to be learned: mean negative log-prob of a token, and exp(-loss)."""
PAIR_METRICS = ("loss", "accuracy", "reward_chosen", "reward_rejected", "reward_margin")
"""Of preferences, means over pairs."""


@dataclass(frozen=True, slots=True)
class Marks:
    """What one held-out prompt's answers are worth: a greedy one, and samples where there are."""

    source: str
    reward: float
    """The greedy answer's, as the next two."""
    finished: bool
    right: bool | None
    """None where nothing tells right from wrong."""
    num_samples: int = 0
    num_right: int = 0
    """Samples that are right."""
    majority: float = 0.0
    """`majority_vote` of the samples."""


Metric = Callable[[Sequence[Marks]], float]
"""A metric of at least one prompt."""


def answer_metrics(num_samples: int, pass_at: Sequence[int], *, judged: bool) -> dict[str, Metric]:
    """eval/NAME -> how it is computed, of evaluations with so many samples of each prompt.

    pass_at: the k of pass@k. judged: whether something tells right from wrong; without it there is
    neither accuracy nor anything of the samples.
    """
    found: dict[str, Metric] = {}
    if judged:
        found["eval/accuracy"] = lambda marks: _mean([bool(one.right) for one in marks])
    if judged and num_samples:
        found |= {f"eval/pass@{k}": partial(_pass_at, k=k) for k in pass_at}
        found[f"eval/maj@{num_samples}"] = lambda marks: _mean([one.majority for one in marks])
        found["eval/sampled_accuracy"] = _sampled_accuracy
    found["eval/reward_mean"] = lambda marks: _mean([one.reward for one in marks])
    found["eval/finished"] = lambda marks: _mean([one.finished for one in marks])
    return found


def measure(marks: Sequence[Marks], metrics: Mapping[str, Metric]) -> dict[str, float]:
    """Each metric over all prompts and, where there are several sources, as NAME/SOURCE of each."""
    found = {name: metric(marks) for name, metric in metrics.items()}
    sources = sorted({one.source for one in marks})
    for source in sources if len(sources) > 1 else []:
        own = [one for one in marks if one.source == source]
        found |= {f"{name}/{source}": metric(own) for name, metric in metrics.items()}
    return found


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _pass_at(marks: Sequence[Marks], k: int) -> float:
    num_samples = torch.tensor([one.num_samples for one in marks])
    num_right = torch.tensor([one.num_right for one in marks])
    return float(pass_at_k(num_samples, num_right, k).mean())


def _sampled_accuracy(marks: Sequence[Marks]) -> float:
    return sum(one.num_right for one in marks) / sum(one.num_samples for one in marks)

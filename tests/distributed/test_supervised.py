"""Learning from examples: what plain torch learns from them, on every layout.

The references are transformers' models, one sequence at a time, with torch's AdamW: losses of three
optimizer steps, gradient norms, accuracies and scores, and held-out figures before and after.
"""

from __future__ import annotations

import random
from typing import Any

import jobs_supervised as jobs
import pytest
import torch
from cluster import Cluster
from ppo_reference import _adam
from tiny_models import VOCAB_SIZE, TinyModels

from megarl.config.schema import OptimizerConfig
from megarl.data.examples import Example
from megarl.data.preferences import Pair
from megarl.mesh.layout import MeshLayout

pytestmark = pytest.mark.dist
OPTIMIZER = OptimizerConfig(lr=3e-3)
STEPS = 3
CASES: dict[str, tuple[MeshLayout, dict[str, Any]]] = {
    "dp2pp2": (MeshLayout(dp=2, pp=2), {}),
    "pp2-vpp2": (MeshLayout(pp=2, vpp=2), {}),
    "tp2-sequence-parallel-packed": (
        MeshLayout(tp=2, sequence_parallel=True), {"packing": True, "max_tokens": 60},
    ),
    "dp2-packed": (MeshLayout(dp=2), {"packing": True}),
}  # fmt: skip
FAST = ("dp2pp2", "tp2-sequence-parallel-packed")
EACH_CASE = pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n not in FAST)) for n in CASES]
)


def tokens(dice: random.Random, count: int) -> list[int]:
    return [dice.randrange(2, VOCAB_SIZE) for _ in range(count)]


def examples() -> list[list[Example]]:
    """Ragged sequences of 3 to 20 tokens, with what is learned in one or two pieces."""
    dice, steps = random.Random(5), []
    for _ in range(STEPS):
        batch = []
        for _ in range(8):
            ids = tokens(dice, dice.randrange(3, 21))
            learned = [False, *(dice.random() < 0.6 for _ in ids[1:])]
            learned[-1] = True
            batch.append(Example(torch.tensor(ids), torch.tensor(learned)))
        steps.append(batch)
    return steps


def pairs() -> list[list[Pair]]:
    """Answers of 1 to 9 tokens; every other pair has a margin."""
    dice = random.Random(6)

    def pair(margin: float) -> Pair:
        prompt, chosen = tokens(dice, dice.randrange(1, 7)), tokens(dice, dice.randrange(1, 10))
        rejected = tokens(dice, dice.randrange(1, 10))
        return Pair(tuple(prompt), tuple(chosen), tuple(rejected), margin)

    return [[pair(0.5 * (i % 2)) for i in range(8)] for _ in range(STEPS)]


def step(model: Any, optimizer: Any, loss: torch.Tensor) -> dict[str, float]:
    """One step of plain torch."""
    optimizer.zero_grad()
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), OPTIMIZER.clip_grad)
    optimizer.step()
    return {"loss": float(loss), "grad_norm": float(norm)}


def plain_tokens(path: str) -> list[dict[str, float]]:
    """What `jobs.learn_tokens` is to find."""
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)

    def loss_of(batch: list[Example]) -> torch.Tensor:
        each = []
        for example in batch:
            logits = model(example.tokens[None]).logits[0, :-1]
            nats = torch.nn.functional.cross_entropy(logits, example.tokens[1:], reduction="none")
            each.append(nats[example.learned[1:]])
        return torch.cat(each).mean()

    return plain(model, examples(), lambda batch: {"loss": loss_of(batch)})


def plain_pairs(path: str) -> list[dict[str, float]]:
    """What `jobs.learn_pairs` is to find."""
    from transformers import AutoModelForSequenceClassification

    model: Any = AutoModelForSequenceClassification.from_pretrained(path, dtype=torch.float32)

    def score(ids: tuple[int, ...]) -> torch.Tensor:
        hidden = model.model(torch.tensor([ids])).last_hidden_state
        return model.score(hidden)[0, -1, 0]

    def figures(batch: list[Pair]) -> dict[str, torch.Tensor]:
        chosen = torch.stack([score(p.prompt_ids + p.chosen_ids) for p in batch])
        rejected = torch.stack([score(p.prompt_ids + p.rejected_ids) for p in batch])
        margin = torch.tensor([p.margin for p in batch])
        return {
            "loss": torch.log1p(torch.exp(-(chosen - rejected - margin))).mean(),
            "accuracy": (chosen > rejected).float().mean(),
            "reward_chosen": chosen.mean(),
            "reward_rejected": rejected.mean(),
        }

    return plain(model, pairs(), figures)


def plain(model: Any, steps: Any, figures: Any) -> list[dict[str, float]]:
    """Figures before, of each step, and after."""
    optimizer = _adam(list(model.parameters()), OPTIMIZER)

    def now(batch: Any) -> dict[str, float]:
        with torch.no_grad():
            return {name: float(value) for name, value in figures(batch).items()}

    found = [now(steps[0])]
    for batch in steps:
        values = figures(batch)
        others = {name: float(value) for name, value in values.items()}
        found.append(others | step(model, optimizer, values["loss"]))
    return [*found, now(steps[0])]


def assert_learned(found: list[dict[str, float]], expected: list[dict[str, float]]) -> None:
    """Equal figures; and the loss fell, or all would agree about nothing."""
    assert expected[-1]["loss"] < expected[0]["loss"] - 0.05
    for one, other in zip(found, expected, strict=True):
        for name, value in other.items():
            assert one[name] == pytest.approx(value, abs=2e-4, rel=2e-4), name


@pytest.fixture(scope="module")
def expected(tiny: TinyModels) -> dict[str, list[dict[str, float]]]:
    """Plain torch's figures."""
    return {"tokens": plain_tokens(tiny("llama")), "pairs": plain_pairs(tiny("llama-reward"))}


@EACH_CASE
def test_tokens(name: str, cluster: Cluster, tiny: TinyModels, expected: Any) -> None:
    layout, options = CASES[name]
    case = jobs.Case(tiny("llama"), layout, OPTIMIZER, **options)
    found = cluster.run(layout.size, jobs.learn_tokens, case, examples())
    assert_learned(found[0], expected["tokens"])
    assert all(other == found[0] for other in found[1:])


@EACH_CASE
def test_pairs(name: str, cluster: Cluster, tiny: TinyModels, expected: Any) -> None:
    layout, options = CASES[name]
    case = jobs.Case(tiny("llama-reward"), layout, OPTIMIZER, **options)
    found = cluster.run(layout.size, jobs.learn_pairs, case, pairs())
    assert_learned(found[0], expected["pairs"])
    assert all(other == found[0] for other in found[1:])


def test_each_text_is_read_on_one_rank(cluster: Cluster, tiny: TinyModels) -> None:
    case = jobs.Case(tiny("llama"), MeshLayout(dp=2, pp=2), OPTIMIZER)
    found = cluster.run(4, jobs.texts_read, case, examples()[0])
    assert sorted(number for own in found for number in own) == list(range(8))
    assert sorted(map(len, found)) == [0, 0, 4, 4]

"""Only the model's own tokens are learned: against autograd on transformers' model.

Responses with tool output between the model's turns, in one process and on two stages and two
data-parallel slices. Shown for a loss over tokens and one over whole responses, and with a critic:
what a hole holds of log-probs changes nothing.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_trainer import random_model

SCRIPT = """
import json, sys
from megarl import PPOTrainer
from megarl.trainer import PPOBatch

model, estimator, loss, junk = sys.argv[1:5]
trainer = PPOTrainer(
    model_name=model, lr=1e-3, kl_coef=0.0, adv_estimator=estimator, policy_loss=loss
)
given = json.loads(sys.stdin.read())
for row, marks in enumerate(given["learned"]):
    both = zip(given["logprobs"][row], marks)
    given["logprobs"][row] = [value if mine else float(junk) for value, mine in both]
metrics = trainer.update(PPOBatch(**given))
trainer.close()
print(json.dumps(metrics))
"""
PROMPT = [5, 6, 7]
RESPONSES = [[3, 4, 20, 21, 22, 8, 1], [9, 30, 31, 10, 1], [11, 12, 1], [13, 40, 14, 15, 41, 1]]
LEARNED = [
    [True, True, False, False, False, True, True],
    [True, False, False, True, True],
    [True, True, True],
    [True, False, True, True, False, True],
]
REWARDS = [1.0, 0.0, 0.25, 0.5]


def batch(logprobs: list[list[float]]) -> str:
    return json.dumps(
        {
            "prompts": [PROMPT] * 4,
            "responses": RESPONSES,
            "rewards": REWARDS,
            "groups": [0] * 4,
            "logprobs": logprobs,
            "learned": LEARNED,
        }
    )


def run(
    model: Path, logprobs: list[list[float]], estimator: str, loss: str, junk: float
) -> dict[str, float]:
    words = [sys.executable, "-c", SCRIPT, str(model), estimator, loss, str(junk)]
    done = subprocess.run(words, input=batch(logprobs), capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def reference(model: Path) -> tuple[list[list[float]], float]:
    """Log-probs of the responses; the gradient's norm of the RLOO loss over learned tokens."""
    from transformers import AutoModelForCausalLM

    actor = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    total, found = torch.zeros(()), []
    count = sum(map(sum, LEARNED))
    for response, marks, reward in zip(RESPONSES, LEARNED, REWARDS, strict=True):
        ids = torch.tensor([PROMPT + response])
        table = actor(ids).logits[0, len(PROMPT) - 1 : -1].log_softmax(-1)
        logprobs = table.gather(1, torch.tensor(response)[:, None])[:, 0]
        found.append(logprobs.tolist())
        advantage = reward - (sum(REWARDS) - reward) / 3
        total = total - advantage * (logprobs * torch.tensor(marks)).sum() / count
    total.backward()  # type: ignore[no-untyped-call]
    norm = torch.stack([p.grad.norm() for p in actor.parameters() if p.grad is not None]).norm()
    return found, float(norm)


@pytest.mark.parametrize(
    ("estimator", "loss"),
    [
        ("rloo", "ppo"),
        pytest.param("rloo", "gspo", marks=pytest.mark.long),
        pytest.param("gae", "ppo", marks=pytest.mark.slow),
        pytest.param("reinforce_plus_plus", "ppo", marks=pytest.mark.long),
    ],
)
def test_holes_are_not_learned(estimator: str, loss: str, tmp_path: Path) -> None:
    torch.manual_seed(3)
    model = random_model(tmp_path / "model")
    logprobs, norm = reference(model)
    one = run(model, logprobs, estimator, loss, -1.0)
    other = run(model, logprobs, estimator, loss, -40.0)
    assert one["train_rollout_logprob_abs_diff/max"] < 1e-4
    for name in ("actor/pg_loss", "actor/grad_norm", "actor/ratio_mean", "critic/vf_loss"):
        assert one.get(name) == other.get(name), name
    if (estimator, loss) == ("rloo", "ppo"):
        assert one["actor/grad_norm"] == pytest.approx(norm, rel=1e-4)
    assert one["actor/grad_norm"] > 0

"""A loop of one's own: a vLLM server answers, a function judges, MegaRL trains, the server follows.

    python -m examples.own_loop MODEL [--server http://host:port]

MODEL is a Hugging Face folder. Without --server a server is started here, and ended with the loop.
"""

from __future__ import annotations

import argparse
from contextlib import ExitStack

from megarl import ExperienceBuffer, PPOTrainer, RolloutServer, RolloutWorker
from megarl.transfer.servers import http_servers

PROMPTS = [f"{a} + {b} =" for a in range(2, 8) for b in range(2, 8)]
SAMPLES, MAX_TOKENS, EPOCHS = 8, 12, 10


def reward(text: str) -> float:
    """The share of digits: any function of the answer will do."""
    return sum(character.isdigit() for character in text) / max(len(text), 1)


def run(model: str, server: str | None, epochs: int = EPOCHS) -> list[float]:
    """The mean reward of each epoch."""
    means = []
    print("starting" if server is None else "asking the server")
    with ExitStack() as stack:
        started = None if server else stack.enter_context(RolloutServer(model, max_model_len=64))
        address = started.address if started else str(server)
        worker = stack.enter_context(RolloutWorker(address, tokenizer=model))
        trainer = PPOTrainer(model, lr=2e-3, kl_coef=0.0, adv_estimator="grpo")
        weights = trainer.weight_transfer(http_servers([address]))
        weights.sync(version=1)
        buffer = ExperienceBuffer(capacity=2 * SAMPLES * len(PROMPTS))
        for epoch in range(epochs):
            samples = worker.generate(PROMPTS, MAX_TOKENS, n=SAMPLES)
            buffer.push([sample.rewarded(reward(sample.text)) for sample in samples])
            metrics = trainer.update(buffer.sample(len(samples)))
            weights.sync(version=epoch + 2)
            means.append(sum(reward(sample.text) for sample in samples) / len(samples))
            print(f"epoch {epoch + 1}: reward {means[-1]:.3f}, loss {metrics['actor/loss']:.4f}")
        buffer.close()
        weights.close()
        trainer.close()
    return means


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model")
    parser.add_argument("--server")
    parsed = parser.parse_args()
    run(parsed.model, parsed.server)

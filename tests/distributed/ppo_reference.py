"""PPO in plain torch on transformers models: no Megatron, no planner, one sequence at a time.

Written from the papers and the settings' documentation (config/schema.py): GAE, k1 penalty to the
reference in the reward (its weight fixed or adaptive) and k3 in the loss, whitening over the step,
clipped policy and value losses as token means, entropy bonus, critic warm-up, AdamW with clipped
gradients; truncated importance weights, responses left out by the geometric mean of their ratios or
because they were cut off. One mini-batch per epoch, so no order is left open.
"""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import torch
from fixed_rollouts import NUM_PROMPTS, SAMPLES
from tiny_models import EOS
from torch import Tensor

from megarl.config.schema import Config, OptimizerConfig
from megarl.data.seeds import sample_seed


def plain_steps(_: Any, path: str, folder: Path, config: Config) -> list[dict[str, float]]:
    """The metrics of every step of a run, by one process of a cluster."""
    plain = PlainPPO(path, folder, config)
    return [plain.step(step) for step in range(config.run.steps)]


class PlainPPO:
    """Actor, frozen reference and critic, and their updates."""

    def __init__(self, path: str, folder: Path, config: Config) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self._config, self._algorithm = config, config.algorithm
        self._kl_coef = config.algorithm.kl_coef
        self._updates = {"actor": 0, "critic": 0}
        self._actor: Any = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
        self._reference = copy.deepcopy(self._actor)
        self._critic = copy.deepcopy(self._actor.model)
        self._head = torch.nn.Linear(self._critic.config.hidden_size, 1, bias=False)
        torch.nn.init.zeros_(self._head.weight)
        tokenizer = AutoTokenizer.from_pretrained(path)
        prompts = [json.loads(line) for line in (folder / "prompts.jsonl").open()]
        self._prompts = [tokenizer(row["prompt"])["input_ids"] for row in prompts]
        self._script = [json.loads(line) for line in (folder / "script.jsonl").open()]
        self._decode = tokenizer.decode
        space: dict[str, Any] = {}
        exec((folder / "reward.py").read_text(), space)
        self._reward = space["reward"]
        self._optimizers = {
            "actor": _adam(list(self._actor.parameters()), config.actor.optimizer),
            "critic": _adam(self._critic_parameters(), config.critic.optimizer),
        }

    def step(self, step: int) -> dict[str, float]:
        """One PPO step; the metrics that the run reports under the same names."""
        rows = self._rows(step)
        with torch.no_grad():
            old = [self._policy(self._actor, *row)[0] for row in rows]
            ref = [self._policy(self._reference, *row)[0] for row in rows]
            values = [self._values(*row) for row in rows]
        texts = [self._decode(answer, skip_special_tokens=True) for _, answer in rows]
        scores = self._reward([None] * len(texts), texts)
        kl = [o - r for o, r in zip(old, ref, strict=True)]
        pairs = [self._gae(s, k, v) for s, k, v in zip(scores, kl, values, strict=True)]
        flat = torch.cat([advantages for advantages, _ in pairs])
        spread = (flat.var() + 1e-8).sqrt()
        white = [(advantages - flat.mean()) / spread for advantages, _ in pairs]
        metrics = {"actor/ref_kl": float(torch.cat(kl).mean())}
        metrics["actor/kl_coef"] = self._kl_coef
        self._steer(metrics["actor/ref_kl"], len(rows), step)
        kept = [self._importance(o, *row) for o, row in zip(old, rows, strict=True)]
        metrics |= self._update("critic", self._critic_parameters(), lambda: self._value_loss(
            rows, values, [returns for _, returns in pairs]))  # fmt: skip
        if step >= self._algorithm.critic_warmup:
            metrics |= self._update(
                "actor",
                list(self._actor.parameters()),
                lambda: self._policy_loss(rows, old, ref, white, kept),
            )
        return metrics

    def _steer(self, kl: float, samples: int, step: int) -> None:
        """Set the weight of the penalty from the next step on."""
        control = self._algorithm.kl_ctrl
        if control.type == "adaptive" and step >= self._algorithm.critic_warmup:
            error = kl / control.target_kl - 1
            self._kl_coef *= 1 + max(-0.2, min(error, 0.2)) * samples / control.horizon

    def _rows(self, step: int) -> list[tuple[list[int], list[int]]]:
        rows = []
        for prompt_id in range(NUM_PROMPTS):
            answers = [a["response_ids"] for a in self._script if a["prompt_id"] == prompt_id]
            for index in range(SAMPLES):
                seed = sample_seed(self._config.run.seed, step, prompt_id, index)
                rows.append((self._prompts[prompt_id], answers[seed % len(answers)]))
        return rows

    def _policy(self, model: Any, prompt: list[int], answer: list[int]) -> tuple[Tensor, Tensor]:
        """Log-prob of each answer token, entropy before each."""
        logits = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
        logp = logits.log_softmax(-1)
        picked = logp[torch.arange(len(answer)), torch.tensor(answer)]
        return picked, -(logp.exp() * logp).sum(-1)

    def _values(self, prompt: list[int], answer: list[int]) -> Tensor:
        hidden = self._critic(torch.tensor([prompt + answer])).last_hidden_state[0]
        out: Tensor = self._head(hidden[len(prompt) - 1 : -1])[:, 0]
        return out

    def _gae(self, score: float, kl: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        rewards = -self._kl_coef * kl
        rewards[-1] += score
        after = torch.cat([values[1:], torch.zeros(1)])
        delta = rewards + self._algorithm.gamma * after - values
        decay = self._algorithm.gamma * self._algorithm.lam
        count = len(delta)
        advantages = torch.stack(
            [sum(decay ** (u - t) * delta[u] for u in range(t, count)) for t in range(count)]
        )
        return advantages, advantages + values

    def _importance(
        self, old: Tensor, prompt: list[int], answer: list[int]
    ) -> tuple[Tensor, Tensor]:
        """Of each token: the weight of its loss, and 1 or 0, whether it counts at all."""
        algorithm, count = self._algorithm, torch.ones(len(answer))
        told = next(
            row["logprobs"]
            for row in self._script
            if row["response_ids"] == answer and self._prompts[row["prompt_id"]] == prompt
        )
        away = old - torch.tensor(told)
        weight = away.exp().clamp(max=algorithm.rollout_is_threshold)
        if algorithm.rollout_is is None:
            weight = torch.ones_like(away)
        limit = math.log(algorithm.rollout_rs_threshold)
        if algorithm.rollout_rs == "geometric" and abs(float(away.mean())) > limit:
            count = torch.zeros(len(answer))
        if algorithm.overlong_filtering and answer[-1] != EOS:
            count = torch.zeros(len(answer))
        return weight, count

    def _policy_loss(
        self,
        rows: list[Any],
        old: list[Tensor],
        ref: list[Tensor],
        advantages: list[Tensor],
        kept: list[tuple[Tensor, Tensor]],
    ) -> tuple[Tensor, dict[str, Tensor]]:
        scored = [self._policy(self._actor, *row) for row in rows]
        logp, entropy = (torch.cat(x) for x in zip(*scored, strict=True))
        ratio, a = (logp - torch.cat(old)).exp(), torch.cat(advantages)
        weight, count = (torch.cat(x) for x in zip(*kept, strict=True))
        clip = self._algorithm.clip_ratio

        def mean(x: Tensor) -> Tensor:
            return (x * count).sum() / count.sum()

        surrogate = mean(weight * torch.minimum(ratio * a, ratio.clamp(1 - clip, 1 + clip) * a))
        report = {"actor/pg_loss": -surrogate, "actor/entropy": entropy.mean()}
        loss = -surrogate - self._algorithm.entropy_coef * mean(entropy)
        if self._algorithm.use_kl_loss:
            away = torch.cat(ref) - logp
            report["actor/kl_loss"] = mean(away.exp() - 1 - away)
            loss = loss + self._algorithm.kl_loss_coef * report["actor/kl_loss"]
        kl = (torch.cat(old) - logp).mean()
        return loss, report | {"actor/loss": loss, "actor/ppo_kl": kl}

    def _value_loss(
        self, rows: list[Any], old: list[Tensor], returns: list[Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        values = torch.cat([self._values(*row) for row in rows])
        before, wanted, clip = torch.cat(old), torch.cat(returns), self._algorithm.value_clip
        near = torch.clamp(values, before - clip, before + clip)
        loss = 0.5 * torch.maximum((values - wanted) ** 2, (near - wanted) ** 2).mean()
        return loss, {"critic/vf_loss": loss, "critic/values_mean": values.mean()}

    def _update(self, name: str, parameters: list[Tensor], compute: Any) -> dict[str, float]:
        """`ppo_epochs` optimizer steps; metrics are means over them."""
        seen: dict[str, list[float]] = {}
        for _ in range(self._algorithm.ppo_epochs):
            loss, report = compute()
            rate = self._next_rate(name)
            self._optimizers[name].param_groups[0]["lr"] = rate
            self._optimizers[name].zero_grad()
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            self._optimizers[name].step()
            for key, value in (report | {f"{name}/grad_norm": norm}).items():
                seen.setdefault(key, []).append(float(value))
        return {key: sum(values) / len(values) for key, values in seen.items()} | {
            f"{name}/lr": rate
        }

    def _next_rate(self, name: str) -> float:
        """Linear warm-up from 0, then linearly to min_lr at the run's last optimizer step."""
        config: OptimizerConfig = getattr(self._config, name).optimizer
        done, warmup = self._updates[name], config.lr_warmup_steps
        self._updates[name] += 1
        if done < warmup:
            return config.lr * done / warmup
        if config.lr_decay_style == "constant":
            return config.lr
        steps = self._config.run.steps - self._algorithm.critic_warmup * (name == "actor")
        total = steps * self._algorithm.ppo_epochs
        left = 1 - (done - warmup) / (total - warmup)
        return config.min_lr + (config.lr - config.min_lr) * left

    def _critic_parameters(self) -> list[Tensor]:
        return [*self._critic.parameters(), *self._head.parameters()]


def _adam(parameters: list[Tensor], config: OptimizerConfig) -> torch.optim.Optimizer:
    betas = (config.adam_beta1, config.adam_beta2)
    return torch.optim.AdamW(
        parameters, lr=config.lr, betas=betas, eps=config.adam_eps, weight_decay=0.0
    )

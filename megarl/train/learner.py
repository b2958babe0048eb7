"""What learns: the Megatron roles with their settings and books, wherever the samples come from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from megarl.algorithms.corrections import CorrectionOptions
from megarl.algorithms.kl import KLController
from megarl.layout import ModelShape
from megarl.roles.actor import Actor, PolicyLossSettings, PolicyRole
from megarl.roles.critic import Critic
from megarl.roles.megatron_role import MegatronRole
from megarl.train.stage import Stage


@dataclass(kw_only=True)
class Learner(Stage):
    """Actor, critic and reference on this rank."""

    actor_path: str
    """Hugging Face folder the actor started from."""
    shape: ModelShape
    """The actor's."""
    actor: Actor
    critic: Critic | None
    reference: PolicyRole | None
    policy_settings: PolicyLossSettings
    correction: CorrectionOptions
    kl_controller: KLController

    @property
    def temperature(self) -> float:
        """What Megatron divides its logits by: the sampling temperature."""
        return self.config.rollout.temperature

    def trained_roles(self) -> dict[str, MegatronRole]:
        """Actor and critic."""
        roles = {"actor": self.actor, "critic": self.critic}
        return {name: role for name, role in roles.items() if role is not None}

    def state_dict(self) -> dict[str, Any]:
        """The KL controller, and how often the actor was written."""
        return {
            "kl_controller": self.kl_controller.state_dict(),
            "weight_version": self.actor.weight_version,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.kl_controller.load_state_dict(state["kl_controller"])
        self.actor.weight_version = int(state["weight_version"])

    def megatron_roles(self) -> dict[str, MegatronRole]:
        """The roles that hold Megatron models."""
        roles = {"actor": self.actor, "critic": self.critic, "reference": self.reference}
        return {name: role for name, role in roles.items() if role is not None}

    def needs_old_logprobs(self, num_mini_batches: int) -> bool:
        """Whether old log-probs differ from the update's own, or something before it reads them."""
        algorithm = self.config.algorithm
        single = algorithm.ppo_epochs == 1 and num_mini_batches == 1
        warming = self.step < algorithm.critic_warmup
        read = algorithm.kl_coef > 0 or self.correction.is_on or self.policy_settings.selects
        return not single or warming or read

"""What learns: the Megatron roles with their settings and books, wherever the samples come from."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from megarl.algorithms.kl import KLController
from megarl.config.schema import Config
from megarl.layout import ModelShape
from megarl.mesh.control import Control
from megarl.mesh.universe import Universe
from megarl.observe.logger import Logger
from megarl.observe.progress import Progress
from megarl.observe.timing import Phases
from megarl.roles.actor import Actor, PolicyLossSettings, PolicyRole
from megarl.roles.critic import Critic
from megarl.roles.megatron_role import MegatronRole
from megarl.train.evaluate import Evaluation


@dataclass
class Books:
    """What is written while the run goes on; the logger and the bar exist on rank 0 only."""

    logger: Logger | None
    progress: Progress | None
    phases: Phases = field(default_factory=Phases)
    evaluations: dict[int, Evaluation] = field(default_factory=dict)
    """Step (0 is before the first) -> evaluation."""
    sync: dict[str, float] = field(default_factory=dict)
    step_started: float = 0.0


@dataclass(kw_only=True)
class Learner:
    """Actor, critic and reference on this rank; fields hold the same on all ranks."""

    config: Config
    actor_path: str
    """Hugging Face folder the actor started from."""
    shape: ModelShape
    """The actor's."""
    universe: Universe
    control: Control
    actor: Actor
    critic: Critic | None
    reference: PolicyRole | None
    policy_settings: PolicyLossSettings
    kl_controller: KLController
    books: Books
    step: int = 0

    @property
    def temperature(self) -> float:
        """What Megatron divides its logits by: the sampling temperature."""
        return self.config.rollout.temperature

    def megatron_roles(self) -> dict[str, MegatronRole]:
        """The roles that hold Megatron models."""
        roles = {"actor": self.actor, "critic": self.critic, "reference": self.reference}
        return {name: role for name, role in roles.items() if role is not None}

    def needs_old_logprobs(self, num_mini_batches: int) -> bool:
        """Whether old log-probs differ from the update's own, or the reward's KL reads them."""
        algorithm = self.config.algorithm
        single = algorithm.ppo_epochs == 1 and num_mini_batches == 1
        warming = self.step < algorithm.critic_warmup
        return not single or warming or algorithm.kl_coef > 0

    @contextmanager
    def verb(self, name: str) -> Iterator[None]:
        """One numbered verb: announced to the peers, timed as `timing_s/<name>`."""
        self.control.enter(name)
        with self.books.phases(name):
            yield

"""What critic and actor learn from a step."""

from __future__ import annotations

from torch import Tensor

from megarl.algorithms.stats import PolicyStats, ValueStats
from megarl.data.seeds import stable_hash
from megarl.roles.actor import PolicyInputs, UpdateResult
from megarl.roles.megatron_role import MegatronRole
from megarl.train.learner import Learner
from megarl.train.phases.advantages import AdvantageStep
from megarl.train.phases.compare import compare_policies
from megarl.train.phases.rows import in_slice


def update(run: Learner, batch: AdvantageStep) -> dict[str, float]:
    """Critic, then actor; returns the step's metrics, the same on every rank."""
    scored, metrics = batch.scored, dict(batch.metrics)
    seed = stable_hash(run.config.run.seed, run.step, "epochs") % 2**31
    if run.critic is not None:
        with run.verb("update_critic"):
            result = _update_critic(run, batch, seed)
            run.critic.offload()
            metrics |= _reduced(run, result, run.critic, ValueStats, "critic")
    if run.step >= run.config.algorithm.critic_warmup:
        with run.verb("update_actor"):
            result = _update_actor(run, batch, seed)
            run.actor.offload()
            metrics |= _reduced(run, result, run.actor, PolicyStats, "actor")
            if result is not None and scored.old_logprobs is None:
                scored.old_logprobs = result.logprobs
        if not run.needs_old_logprobs(len(scored.rows.mini_batches)):
            metrics |= compare_policies(run, scored)
    return metrics


def _update_critic(run: Learner, batch: AdvantageStep, seed: int) -> UpdateResult | None:
    scored, algorithm = batch.scored, run.config.algorithm
    assert run.critic is not None
    return run.critic.update(
        scored.critic,
        in_slice(run.critic, scored.critic, scored.critic_values),
        in_slice(run.critic, scored.critic, batch.returns),
        value_clip=algorithm.value_clip,
        epochs=algorithm.ppo_epochs,
        seed=seed,
    )


def _update_actor(run: Learner, batch: AdvantageStep, seed: int) -> UpdateResult | None:
    scored, tokens = batch.scored, batch.tokens

    def share(values: Tensor | None, wanted: bool) -> Tensor | None:
        """An owner's tensor on its slice; whether it is wanted is the same on all ranks."""
        return in_slice(run.actor, scored.actor, values) if wanted else None

    selects = run.policy_settings.selects
    kept = share(tokens.kept, tokens.counts is not None)
    selected = share(batch.selected, selects)
    inputs = PolicyInputs(
        old_logprobs=share(
            scored.old_logprobs, run.needs_old_logprobs(len(scored.rows.mini_batches))
        ),
        ref_logprobs=share(scored.ref_logprobs, run.config.algorithm.use_kl_loss),
        advantages=in_slice(run.actor, scored.actor, batch.advantages),
        importance=share(tokens.importance, run.correction.is_on),
        kept=None if kept is None else kept > 0,
        token_counts=tokens.counts,
        selected=None if selected is None else selected > 0,
    )
    return run.actor.update(scored.actor, inputs, run.policy_settings, seed)


def _reduced(
    run: Learner,
    result: UpdateResult | None,
    role: MegatronRole,
    kind: type[PolicyStats] | type[ValueStats],
    prefix: str,
) -> dict[str, float]:
    """Sums of all owners -> the role's metrics; norms and rates from the role's first owner."""
    counted = result is not None and role.is_owner
    stats = run.control.sum(result.stats if counted and result else kind.zero().to_vector())
    first = role.pool.ranks[role.layout.owner(0)] == run.universe.rank
    facts: dict[str, float] = dict(result.losses) if counted and result else {}
    steps = result.steps if result is not None and first else []
    norms = [step.grad_norm for step in steps]
    facts[f"{prefix}/grad_norm"] = sum(norms) / max(len(norms), 1)
    facts[f"{prefix}/lr"] = steps[-1].lr if steps else 0.0
    return kind.from_vector(stats).metrics() | run.control.agree(facts)

"""The phases of one step. Each is one verb of the driver and one line of `timing_s/*`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from megarl.algorithms.advantages import (
    AdvantageInputs,
    estimator,
    sequence_rewards,
    token_level_rewards,
    whitening,
)
from megarl.algorithms.advantages import compute_advantages as estimate
from megarl.algorithms.kl import kl_estimate
from megarl.algorithms.masked import masked_sum
from megarl.algorithms.stats import PolicyStats, ValueStats
from megarl.data.seeds import stable_hash, step_seeds
from megarl.errors import RunError
from megarl.mesh.rows import RowMap, move_rows
from megarl.roles.actor import PolicyInputs, UpdateResult
from megarl.roles.batching import deal_mini_batches
from megarl.roles.megatron_role import MegatronRole, RoleBatch
from megarl.roles.step_rows import StepRows, step_rows
from megarl.train.learner import Learner
from megarl.train.mismatch import MismatchHistogram, check_mismatch
from megarl.train.run import Run
from megarl.types import Prompt, Rollout, RolloutRequest, RowTable


@dataclass
class ScoredStep:
    """A step's rows with everything that was measured about them; tensors on owners only."""

    table: RowTable
    rows: StepRows
    actor: RoleBatch | None
    critic: RoleBatch | None
    rollout_logprobs: Tensor | None
    """fp32 [n, R] on the actor's owners, as all that follow."""
    old_logprobs: Tensor | None
    """None until the update where its own are the same."""
    ref_logprobs: Tensor | None
    values: Tensor | None
    critic_values: Tensor | None
    """The same values on the critic's owners."""


@dataclass
class AdvantageStep:
    """A scored step with its advantages."""

    scored: ScoredStep
    advantages: Tensor | None
    """fp32 [n, R] on the actor's owners."""
    returns: Tensor | None
    """fp32 [n, R] on the critic's owners."""
    metrics: dict[str, float]


def sync_weights(run: Run) -> None:
    """Reshard the actor's weights into the rollout engines, and prove that they arrived."""
    with run.verb("sync_weights"):
        run.note_sync(run.weight_sync.run())


def generate(run: Run, prompts: Sequence[Prompt]) -> list[Rollout]:
    """Sample `n_samples_per_prompt` responses to each prompt; every replica serves its share."""
    count = run.config.data.n_samples_per_prompt
    seeds = step_seeds(run.config.run.seed, run.step, [p.prompt_id for p in prompts], count)
    requests = [
        RolloutRequest(group * count + index, group, prompt, seeds[group][index])
        for group, prompt in enumerate(prompts)
        for index in range(count)
    ]
    with run.verb("generate"):
        rollouts = run.rollout.generate(requests, run.sampling)
        run.rollout.sleep()
    return rollouts


def score(run: Run, rollouts: list[Rollout]) -> ScoredStep:
    """Rewards, then reference and old log-probs and values, each on its role's own mesh."""
    with run.verb("reward"):
        table = gather_table(run, rollouts, run.scorer.score(rollouts))
    tokens = {
        r.request.row: torch.tensor(r.request.prompt.token_ids + r.response_ids) for r in rollouts
    }
    sampled = {r.request.row: torch.tensor(r.logprobs) for r in rollouts}
    source = run.rollout.row_map(table.group.tolist())
    return measure(run, table, tokens, sampled, source)


def measure(
    run: Learner,
    table: RowTable,
    tokens: dict[int, Tensor],
    sampled: dict[int, Tensor],
    source: RowMap,
) -> ScoredStep:
    """What reference, actor and critic say of rows that lie on their owners in `source`.

    tokens: row -> int64 [prompt + response]; sampled: row -> fp32 [response] log-probs of the
    engine that made them; both of the rows that this rank owns.
    """
    algorithm = run.config.algorithm
    seed = stable_hash(run.config.run.seed, run.step, "mini-batches")
    dealt = deal_mini_batches(table.group.tolist(), algorithm.global_batch_size, seed)
    rows = step_rows(table, dealt)
    with run.verb("distribute"):
        batches = _hand_out(run, rows, source, tokens)
        rollout_logprobs = _to_actor(run, rows, batches["actor"], sampled, source)
    with run.verb("reference"):
        reference = run.reference
        ref_scored = (
            reference.logprobs(batches["reference"], run.temperature) if reference else None
        )
        ref = _bring(run, rows, batches, reference, "reference", ref_scored)
    with run.verb("old_logprobs"):
        old = None
        if run.needs_old_logprobs(len(rows.mini_batches)):
            old = run.actor.logprobs(batches["actor"], run.temperature)
    with run.verb("values"):
        critic = run.critic
        critic_values = critic.values(batches["critic"]) if critic else None
        values = _bring(run, rows, batches, critic, "critic", critic_values)
    return ScoredStep(
        table=table,
        rows=rows,
        actor=batches["actor"],
        critic=batches.get("critic"),
        rollout_logprobs=rollout_logprobs,
        old_logprobs=old,
        ref_logprobs=ref,
        values=values,
        critic_values=critic_values,
    )


def compute_advantages(run: Learner, scored: ScoredStep) -> AdvantageStep:
    """Advantages on the actor's owners; the critic's targets travel to the critic's owners."""
    algorithm = run.config.algorithm
    with run.verb("advantages"):
        advantages = returns = None
        chosen = estimator(algorithm.adv_estimator)
        whitens = chosen.needs_values and algorithm.whiten_advantages
        normalization = whitening if whitens else chosen.normalization
        sums = torch.zeros(normalization.num_sums if normalization else 0, dtype=torch.float64)
        if scored.actor is not None and run.actor.is_owner:
            inputs = _advantage_inputs(run, scored, scored.actor.mask)
            advantages, returns = estimate(algorithm.adv_estimator, inputs)
            if normalization is not None:
                sums = normalization.sums(inputs, advantages)
        if normalization is not None:
            sums = run.control.sum(sums)
            if advantages is not None and scored.actor is not None:
                advantages = normalization.apply(advantages, scored.actor.mask, sums)
        critic_returns = _actor_to_critic(run, scored, returns)
        metrics = _table_metrics(scored.table)
        if run.needs_old_logprobs(len(scored.rows.mini_batches)):
            metrics |= _reference_kl(run, scored)
    return AdvantageStep(scored, advantages, critic_returns, metrics)


def update(run: Learner, batch: AdvantageStep) -> dict[str, float]:
    """Critic, then actor; returns the step's metrics, the same on every rank."""
    scored, algorithm = batch.scored, run.config.algorithm
    seed = stable_hash(run.config.run.seed, run.step, "epochs") % 2**31
    metrics = dict(batch.metrics)
    if run.critic is not None:
        with run.verb("update_critic"):
            old_values = _in_slice(run.critic, scored.critic, scored.critic_values)
            returns = _in_slice(run.critic, scored.critic, batch.returns)
            result = run.critic.update(
                scored.critic,
                old_values,
                returns,
                value_clip=algorithm.value_clip,
                epochs=algorithm.ppo_epochs,
                seed=seed,
            )
            run.critic.offload()
            metrics |= _reduced(run, result, run.critic, ValueStats, "critic/vf_loss", "critic")
    if run.step >= algorithm.critic_warmup:
        with run.verb("update_actor"):
            result = _update_actor(run, batch, seed)
            run.actor.offload()
            metrics |= _reduced(run, result, run.actor, PolicyStats, "actor/pg_loss", "actor")
            if result is not None and scored.old_logprobs is None:
                scored.old_logprobs = result.logprobs
        if not run.needs_old_logprobs(len(scored.rows.mini_batches)):
            metrics |= _reference_kl(run, scored)
    return metrics | _mismatch(run, scored)


def gather_table(run: Run, rollouts: Sequence[Rollout], rewards: Sequence[float]) -> RowTable:
    """The step's per-row scalars on every rank; raises RunError for a stale weight version."""
    own = [
        (
            r.request.row,
            r.request.group,
            len(r.request.prompt.token_ids),
            len(r.response_ids),
            reward,
            r.finish_reason == "stop",
            r.weight_version,
            r.request.prompt.source,
        )
        for r, reward in zip(rollouts, rewards, strict=True)
    ]
    rows = sorted(row for answer in run.control.gather(own) for row in answer)
    if [row[0] for row in rows] != list(range(len(rows))):
        raise RunError(f"rows {[row[0] for row in rows]} came back, not {len(rows)} different ones")
    columns = list(zip(*rows, strict=True))
    stale = sorted({v for v in columns[6] if v != run.actor.weight_version})
    if stale:
        raise RunError(
            f"samples were made by weight version {stale[0]}, the actor is at "
            f"{run.actor.weight_version}: a sync was left out, or did not reach every engine"
        )
    return RowTable(
        group=torch.tensor(columns[1], dtype=torch.int32),
        prompt_length=torch.tensor(columns[2], dtype=torch.int32),
        response_length=torch.tensor(columns[3], dtype=torch.int32),
        reward=torch.tensor(columns[4], dtype=torch.float32),
        finished=torch.tensor(columns[5], dtype=torch.bool),
        weight_version=torch.tensor(columns[6], dtype=torch.int32),
        source=tuple(columns[7]),
    )


def _hand_out(
    run: Learner, rows: StepRows, source: RowMap, tokens: dict[int, Tensor]
) -> dict[str, RoleBatch | None]:
    """Each role's share of the token rows; roles that deal alike share one batch."""
    batches: dict[str, RoleBatch | None] = {}
    done: dict[tuple[object, ...], RoleBatch | None] = {}
    for name, role in run.megatron_roles().items():
        key = (role.pool.ranks, role.layout)
        if key not in done:
            dealt = role.deal(rows)
            arrived = move_rows(run.universe, tokens, rows.length, source, dealt.map, torch.int64)
            done[key] = role.take_rows(dealt, arrived)
        batches[name] = done[key]
    return batches


def _to_actor(
    run: Learner,
    rows: StepRows,
    batch: RoleBatch | None,
    values: dict[int, Tensor],
    source: RowMap,
) -> Tensor | None:
    """Bring per-token numbers from their owners to the actor's; [n, R] there."""
    target = run.actor.deal(rows).map
    lengths = list(rows.response_length)
    arrived = move_rows(run.universe, values, lengths, source, target, torch.float32)
    return batch.from_rows(arrived) if batch is not None and run.actor.is_owner else None


def _bring(
    run: Learner,
    rows: StepRows,
    batches: dict[str, RoleBatch | None],
    role: MegatronRole | None,
    name: str,
    values: Tensor | None,
) -> Tensor | None:
    """A role's [n, R] on its own owners -> [n, R] on the actor's."""
    if role is None:
        return None
    batch = batches[name]
    own = batch.to_rows(values) if batch is not None and values is not None else {}
    return _to_actor(run, rows, batches["actor"], own, role.deal(rows).map)


def _actor_to_critic(run: Learner, scored: ScoredStep, returns: Tensor | None) -> Tensor | None:
    if run.critic is None:
        return None
    own = {}
    if returns is not None and scored.actor is not None:
        own = scored.actor.to_rows(returns)
    source, target = run.actor.deal(scored.rows).map, run.critic.deal(scored.rows).map
    lengths = list(scored.rows.response_length)
    arrived = move_rows(run.universe, own, lengths, source, target, torch.float32)
    if scored.critic is None or not run.critic.is_owner:
        return None
    return scored.critic.from_rows(arrived)


def _reference_kl(run: Learner, scored: ScoredStep) -> dict[str, float]:
    """Mean KL of a response token to the reference, told to the controller; {} without one."""
    if run.reference is None:
        return {}
    kl = 0.0
    if scored.ref_logprobs is not None and scored.actor is not None:
        assert scored.old_logprobs is not None
        mask = scored.actor.mask
        kl = float(
            masked_sum(kl_estimate(scored.old_logprobs, scored.ref_logprobs, mask, "k1"), mask)
        )
    kl = run.control.agree({"kl": kl})["kl"] / max(sum(scored.rows.response_length), 1)
    metrics = {"actor/ref_kl": kl, "actor/kl_coef": run.kl_controller.value}
    run.kl_controller.update(kl, len(scored.table))
    return metrics


def _advantage_inputs(run: Learner, scored: ScoredStep, mask: Tensor) -> AdvantageInputs:
    """The estimator's inputs on an owner."""
    algorithm, batch = run.config.algorithm, scored.actor
    assert batch is not None
    reward = scored.table.reward[list(batch.index)]
    kl = None
    if scored.ref_logprobs is not None and scored.old_logprobs is not None:
        kl = kl_estimate(scored.old_logprobs, scored.ref_logprobs, mask, "k1")
    coefficient = run.kl_controller.value if algorithm.kl_coef > 0 else 0.0
    return AdvantageInputs(
        mask=mask,
        rewards=token_level_rewards(reward, kl, mask, coefficient),
        scores=sequence_rewards(reward, kl, mask, coefficient),
        group=scored.table.group[list(batch.index)].long(),
        values=scored.values,
        gamma=algorithm.gamma,
        lam=algorithm.lam,
    )


def _in_slice(role: MegatronRole, batch: RoleBatch | None, values: Tensor | None) -> Tensor:
    """An owner's [n, R], on all ranks of its slice."""
    if batch is None:
        return torch.zeros(0)
    shape = (len(batch.index), batch.width)
    mine = values if values is not None and role.is_owner else torch.zeros(shape)
    return role.broadcast(mine.float().contiguous())


def _update_actor(run: Learner, batch: AdvantageStep, seed: int) -> UpdateResult | None:
    scored = batch.scored
    old = ref = None
    if run.needs_old_logprobs(len(scored.rows.mini_batches)):
        old = _in_slice(run.actor, scored.actor, scored.old_logprobs)
    if run.config.algorithm.use_kl_loss:
        ref = _in_slice(run.actor, scored.actor, scored.ref_logprobs)
    advantages = _in_slice(run.actor, scored.actor, batch.advantages)
    inputs = PolicyInputs(old, ref, advantages)
    return run.actor.update(scored.actor, inputs, run.policy_settings, seed)


def _reduced(
    run: Learner,
    result: UpdateResult | None,
    role: MegatronRole,
    kind: type[PolicyStats] | type[ValueStats],
    loss_name: str,
    prefix: str,
) -> dict[str, float]:
    """Sums of all owners -> the role's metrics; norms and rates from the role's first owner."""
    counted = result is not None and role.is_owner
    stats = run.control.sum(result.stats if counted and result else kind.zero().to_vector())
    first = role.pool.ranks[role.layout.owner(0)] == run.universe.rank
    facts: dict[str, float] = {loss_name: result.loss if counted and result else 0.0}
    steps = result.steps if result is not None and first else []
    norms = [step.grad_norm for step in steps]
    facts[f"{prefix}/grad_norm"] = sum(norms) / max(len(norms), 1)
    facts[f"{prefix}/lr"] = steps[-1].lr if steps else 0.0
    return kind.from_vector(stats).metrics() | run.control.agree(facts)


def _mismatch(run: Learner, scored: ScoredStep) -> dict[str, float]:
    """How far the trainer's log-probs are from the engine's, with the limits that stop a run."""
    histogram, logprobs = MismatchHistogram(), scored.old_logprobs
    if logprobs is not None and scored.rollout_logprobs is not None and scored.actor is not None:
        histogram.add((logprobs - scored.rollout_logprobs)[scored.actor.mask])
    histogram = histogram.reduced(run.control.sum, run.control.gather)
    check_mismatch(
        histogram,
        run.config.observe.logprob_diff_mean_limit,
        run.config.observe.logprob_diff_p99_limit,
    )
    return histogram.metrics()


def _table_metrics(table: RowTable) -> dict[str, float]:
    lengths = table.response_length.double()
    return {
        "reward_mean": float(table.reward.double().mean()),
        "reward_std": float(table.reward.double().std(unbiased=False)),
        "response_length/mean": float(lengths.mean()),
        "response_length/max": float(lengths.max()),
        "response_length/clip_ratio": float((~table.finished).double().mean()),
        "tokens/prompt": float(table.prompt_length.sum()),
        "tokens/response": float(table.response_length.sum()),
    }

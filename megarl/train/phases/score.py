"""What reference, actor and critic say of a step's samples."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from megarl.algorithms.corrections import Correction
from megarl.data.seeds import stable_hash
from megarl.mesh.rows import RowMap
from megarl.roles.batching import deal_mini_batches
from megarl.roles.megatron_role import RoleBatch
from megarl.roles.step_rows import StepRows, step_rows
from megarl.train.learner import Learner
from megarl.train.phases.generate import Samples
from megarl.train.phases.rows import between, bring, hand_out
from megarl.train.run import Run
from megarl.types import RowTable


@dataclass
class ScoredStep:
    """A step's rows with everything that was measured about them; tensors on owners only."""

    table: RowTable
    rows: StepRows
    actor: RoleBatch | None
    critic: RoleBatch | None
    rollout_logprobs: Tensor | None
    """fp32 [n, R] on the actor's owners, as all that follow."""
    process: Tensor | None
    """Process rewards, NaN where a token ends no step; None where nothing gave any."""
    old_logprobs: Tensor | None
    """None until the update where its own are the same."""
    ref_logprobs: Tensor | None
    values: Tensor | None
    critic_values: Tensor | None
    """The same values on the critic's owners."""
    metrics: dict[str, float]
    correction: Correction | None = None
    """Of the engine's log-probs, on the actor's owners, once the old log-probs are known."""


def score(run: Run, samples: Samples) -> ScoredStep:
    """Reference and old log-probs and values, each on its role's own mesh."""
    own = samples.rollouts.items()
    scored = measure(
        run,
        samples.table,
        {row: torch.tensor(r.request.prompt.token_ids + r.response_ids) for row, r in own},
        {row: torch.tensor(r.logprobs) for row, r in own},
        samples.source,
        samples.process,
        None
        if samples.table.learned_length is None
        else {row: torch.tensor(r.learned or [True] * len(r.response_ids)) for row, r in own},
    )
    scored.metrics |= samples.metrics
    return scored


def measure(
    run: Learner,
    table: RowTable,
    tokens: dict[int, Tensor],
    sampled: dict[int, Tensor],
    source: RowMap,
    process: dict[int, Tensor] | None = None,
    learned: dict[int, Tensor] | None = None,
) -> ScoredStep:
    """What reference, actor and critic say of rows that lie on their owners in `source`.

    tokens: row -> int64 [prompt + response]; sampled: row -> fp32 [response] log-probs of the
    engine that made them; process: row -> fp32 [response], or None on all ranks; learned: row ->
    bool [response], or None on all ranks; all of the rows that this rank owns.
    """
    algorithm = run.config.algorithm
    seed = stable_hash(run.config.run.seed, run.step, "mini-batches")
    dealt = deal_mini_batches(table.group.tolist(), algorithm.global_batch_size, seed)
    rows = step_rows(table, dealt)
    with run.verb("distribute"):
        batches = hand_out(run, rows, source, tokens, learned)
        actor = run.actor, batches["actor"]
        rollout_logprobs = bring(run, rows, sampled, source, *actor)
        rewards = None if process is None else bring(run, rows, process, source, *actor)
    with run.verb("reference"):
        ref, reference = None, run.reference
        if reference is not None:
            found = reference.logprobs(batches["reference"], run.temperature)
            ref = between(run, rows, found, (reference, batches["reference"]), actor)
    with run.verb("old_logprobs"):
        old = None
        if run.needs_old_logprobs(len(rows.mini_batches)):
            old = run.actor.logprobs(batches["actor"], run.temperature)
    with run.verb("values"):
        values = critic_values = None
        if run.critic is not None:
            critic_values = run.critic.values(batches["critic"])
            values = between(run, rows, critic_values, (run.critic, batches["critic"]), actor)
    return ScoredStep(
        table=table,
        rows=rows,
        actor=batches["actor"],
        critic=batches.get("critic"),
        rollout_logprobs=rollout_logprobs,
        process=rewards,
        old_logprobs=old,
        ref_logprobs=ref,
        values=values,
        critic_values=critic_values,
        metrics={},
    )

"""The critic: values of the states before each response token, and the clipped value update."""

from __future__ import annotations

import random
from typing import Any

from torch import Tensor

from megarl.algorithms.losses import value_loss
from megarl.algorithms.stats import ValueStats
from megarl.models.micro_batch import LossInputs, MicroBatch
from megarl.models.schedule import Loss
from megarl.roles.actor import UpdateResult, mini_batch_weights
from megarl.roles.megatron_role import MegatronRole, RoleBatch


def value_reporter(output: Any, batch: MicroBatch) -> tuple[Tensor, dict[str, Tensor]]:
    """A loss that only reports what a scalar head says of each scored position."""
    return output.sum(), {"values": output.detach()}


class Critic(MegatronRole):
    """The value model that is trained."""

    def values(self, batch: RoleBatch | None) -> Tensor | None:
        """fp32 [n, R] on owners."""
        return self.score(batch, value_reporter, "values")

    def update(
        self,
        batch: RoleBatch | None,
        old_values: Tensor,
        returns: Tensor,
        *,
        value_clip: float | None,
        epochs: int,
        seed: int,
    ) -> UpdateResult | None:
        """`epochs` passes over the step's mini-batches; old_values and returns fp32 [n, R]."""
        if batch is None:
            return None
        stats, total, steps = ValueStats.zero().to_vector(), 0.0, []
        for epoch in range(epochs):
            order = list(batch.dealt.rows.mini_batches)
            random.Random(seed + epoch).shuffle(order)
            for rows in order:
                inputs = LossInputs(
                    weights=mini_batch_weights(batch, rows, "token-mean", 1).reshape(-1),
                    old_values=old_values.reshape(-1),
                    returns=returns.reshape(-1),
                )
                reports, step = self.train_on(batch, rows, inputs, _value_loss(value_clip))
                steps.append(step)
                for _, report in reports if self.is_owner else []:
                    stats += report["stats"]
                    total += float(report["loss"])
        return UpdateResult(stats, {"critic/vf_loss": total / max(len(steps), 1)}, steps)


def _value_loss(value_clip: float | None) -> Loss:
    def loss(output: Any, batch: MicroBatch) -> tuple[Tensor, dict[str, Tensor]]:
        inputs, device = batch.inputs, output.device
        assert inputs.weights is not None
        assert inputs.old_values is not None and inputs.returns is not None
        value, stats = value_loss(
            output[None],
            inputs.old_values.to(device)[None],
            inputs.returns.to(device)[None],
            (inputs.weights.to(device) >= 0)[None],
            inputs.weights.to(device)[None],
            value_clip=value_clip,
        )
        return value, {"loss": value.detach().clone(), "stats": stats.to_vector().detach().cpu()}

    return loss

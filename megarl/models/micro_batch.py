"""Micro-batches: padded tokens, the scored positions, and the numbers their losses need.

One builder serves training and scoring: it knows nothing of Megatron or of process groups.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Self

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class LossInputs:
    """Per scored token, fp32 [n]; what a role does not use stays None."""

    weights: Tensor | None = None
    """The token's share of the global loss (see algorithms.losses.token_weights)."""
    old_logprobs: Tensor | None = None
    ref_logprobs: Tensor | None = None
    advantages: Tensor | None = None
    old_values: Tensor | None = None
    returns: Tensor | None = None

    def take(self, index: Tensor) -> Self:
        """The same numbers of the tokens `index` [n']."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return type(self)(**{k: None if v is None else v[index] for k, v in values.items()})


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """b sequences of one forward pass."""

    tokens: Tensor
    """int64 [b, s], right-padded with 0."""
    position: Tensor
    """int64 [n]: column * b + row of the position that predicts the token."""
    target: Tensor
    """int64 [n]: the scored tokens."""
    slot: Tensor
    """int64 [n]: row * R + column of the token in the batch's [rows, R] tensors."""
    inputs: LossInputs = field(default_factory=LossInputs)


def build_micro_batch(
    tokens: Tensor,
    prompt_length: Tensor,
    response_length: Tensor,
    rows: list[int],
    width: int,
    inputs: LossInputs | None = None,
    pad_to_multiple: int = 1,
) -> MicroBatch:
    """The micro-batch of `rows` of a batch.

    tokens [B, S]; lengths [B]; `width` is R, the second dimension of the batch's response tensors;
    `inputs` hold flat [B x R] tensors. The padded length is a multiple of `pad_to_multiple` (the
    tensor size under sequence parallelism). No rows: one row of one padding token, nothing scored.
    """
    if not rows:
        return _blank(pad_to_multiple, inputs)
    pick = torch.tensor(rows)
    prompt, response = prompt_length[pick], response_length[pick]
    block = _padded(tokens[pick], int((prompt + response).max()), pad_to_multiple)
    columns = torch.arange(max(int(response.max()), 1))
    row, column = (columns[None, :] < response[:, None]).nonzero(as_tuple=True)
    target_at = prompt[row] + column
    slot = pick[row] * width + column
    return MicroBatch(
        tokens=block,
        position=(target_at - 1) * len(rows) + row,
        target=block[row, target_at],
        slot=slot,
        inputs=(inputs or LossInputs()).take(slot),
    )


def build_last_token_batch(
    tokens: Tensor, length: Tensor, rows: list[int], pad_to_multiple: int = 1
) -> MicroBatch:
    """The micro-batch of `rows` that scores the position of each row's last token.

    tokens [B, S]; length [B]; `slot` is the row, `target` the token that stands there.
    """
    if not rows:
        return _blank(pad_to_multiple, None)
    pick = torch.tensor(rows)
    block = _padded(tokens[pick], int(length[pick].max()), pad_to_multiple)
    row, last = torch.arange(len(rows)), length[pick] - 1
    return MicroBatch(block, last * len(rows) + row, block[row, last], pick)


def _blank(pad_to_multiple: int, inputs: LossInputs | None) -> MicroBatch:
    """One row of padding tokens, of which nothing is scored."""
    none = torch.zeros(0, dtype=torch.int64)
    blank = torch.zeros(1, pad_to_multiple, dtype=torch.int64)
    return MicroBatch(blank, none, none, none, (inputs or LossInputs()).take(none))


def _padded(tokens: Tensor, longest: int, multiple: int) -> Tensor:
    """tokens [b, S] cut or padded with 0 to the multiple that holds `longest` of them."""
    width = -(-max(longest, 1) // multiple) * multiple
    block = torch.zeros(len(tokens), width, dtype=torch.int64)
    copied = min(width, tokens.shape[1])
    block[:, :copied] = tokens[:, :copied]
    return block

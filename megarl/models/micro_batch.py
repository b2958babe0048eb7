"""Micro-batches: padded tokens, the scored positions, and the numbers their losses need.

One builder serves training and scoring: it knows nothing of Megatron or of process groups.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import NamedTuple, Self

import torch
from torch import Tensor

from megarl.data.balance import pack


@dataclass(frozen=True, slots=True)
class LossInputs:
    """Per scored token, [n], fp32 but `selected`, bool; what a role does not use stays None."""

    weights: Tensor | None = None
    """The token's share of the global loss (see algorithms.losses.token_weights)."""
    old_logprobs: Tensor | None = None
    ref_logprobs: Tensor | None = None
    advantages: Tensor | None = None
    importance: Tensor | None = None
    """What the weight is multiplied by in the policy's own loss (see algorithms.corrections)."""
    selected: Tensor | None = None
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
    samples: Tensor | None = None
    """int64 [b, s]: the sample that each token belongs to, -1 for padding, where samples share
    rows; None: a row is a sample."""

    def attention_mask(self) -> Tensor | None:
        """bool [b, 1, s, s], True where attention is allowed; None: causal in every row."""
        if self.samples is None:
            return None
        same = self.samples[:, :, None] == self.samples[:, None, :]
        return same.tril()[:, None]


def build_micro_batch(
    tokens: Tensor,
    prompt_length: Tensor,
    response_length: Tensor,
    rows: list[int],
    width: int,
    inputs: LossInputs | None = None,
    pad_to_multiple: int = 1,
    *,
    packing: bool = False,
    learned: Tensor | None = None,
) -> MicroBatch:
    """The micro-batch of `rows` of a batch.

    tokens [B, S]; lengths [B]; `width` is R, the second dimension of the batch's response tensors;
    `inputs` hold flat [B x R] tensors. The padded length is a multiple of `pad_to_multiple` (the
    tensor size under sequence parallelism). packing: samples share rows. learned, bool [B, R]:
    response tokens that are scored; None: all. No rows: one row of one padding token, nothing
    scored.
    """
    if not rows:
        return _blank(pad_to_multiple, inputs)
    pick = torch.tensor(rows)
    prompt, response = prompt_length[pick], response_length[pick]
    laid = _lay_out(tokens[pick], prompt + response, pad_to_multiple, packing)
    columns = torch.arange(max(int(response.max()), 1))
    scored = columns[None, :] < response[:, None]
    if learned is not None:
        scored &= learned[pick][:, : len(columns)]
    row, column = scored.nonzero(as_tuple=True)
    target_at = prompt[row] + column
    slot = pick[row] * width + column
    return MicroBatch(
        tokens=laid.tokens,
        position=laid.position(row, target_at - 1),
        target=tokens[pick][row, target_at],
        slot=slot,
        inputs=(inputs or LossInputs()).take(slot),
        samples=laid.samples,
    )


def build_last_token_batch(
    tokens: Tensor,
    length: Tensor,
    rows: list[int],
    pad_to_multiple: int = 1,
    *,
    packing: bool = False,
) -> MicroBatch:
    """The micro-batch of `rows` that scores the position of each row's last token.

    tokens [B, S]; length [B]; `slot` is the row, `target` the token that stands there.
    """
    if not rows:
        return _blank(pad_to_multiple, None)
    pick = torch.tensor(rows)
    laid = _lay_out(tokens[pick], length[pick], pad_to_multiple, packing)
    row, last = torch.arange(len(rows)), length[pick] - 1
    return MicroBatch(
        laid.tokens, laid.position(row, last), tokens[pick][row, last], pick, samples=laid.samples
    )


class _Laid(NamedTuple):
    """Samples in rows of one width, behind each other where they share one."""

    tokens: Tensor
    """int64 [b, s]."""
    row: Tensor
    """int64 [n]: the row of each sample."""
    start: Tensor
    """int64 [n]: its first column."""
    samples: Tensor | None

    def position(self, sample: Tensor, column: Tensor) -> Tensor:
        """Flat position (column * b + row) of columns of samples."""
        return (self.start[sample] + column) * len(self.tokens) + self.row[sample]


def _lay_out(tokens: Tensor, length: Tensor, multiple: int, packing: bool) -> _Laid:
    """tokens [n, S] with lengths [n], as rows whose width is a multiple of `multiple`."""
    count = len(tokens)
    rows = pack(length.tolist()) if packing else [[sample] for sample in range(count)]
    longest = max(int(length[row].sum()) for row in rows)
    width = -(-max(longest, 1) // multiple) * multiple
    block = torch.zeros(len(rows), width, dtype=torch.int64)
    samples = torch.full((len(rows), width), -1)
    row_of, start = torch.zeros(2, count, dtype=torch.int64)
    for index, row in enumerate(rows):
        at = 0
        for sample in row:
            end = at + int(length[sample])
            block[index, at:end] = tokens[sample, : end - at]
            samples[index, at:end] = sample
            row_of[sample], start[sample] = index, at
            at = end
    return _Laid(block, row_of, start, samples if len(rows) < count else None)


def _blank(pad_to_multiple: int, inputs: LossInputs | None) -> MicroBatch:
    """One row of padding tokens, of which nothing is scored."""
    none = torch.zeros(0, dtype=torch.int64)
    blank = torch.zeros(1, pad_to_multiple, dtype=torch.int64)
    return MicroBatch(blank, none, none, none, (inputs or LossInputs()).take(none))

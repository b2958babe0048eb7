"""The micro-batch builder against a token-by-token loop."""

from __future__ import annotations

import torch
from torch import Tensor

from megarl.models.micro_batch import LossInputs, MicroBatch, build_micro_batch

ROWS, LONGEST, WIDTH = 6, 15, 9


def batch() -> tuple[Tensor, Tensor, Tensor]:
    """tokens [B, S] with junk behind each row's end, lengths of prompts and responses."""
    dice = torch.Generator().manual_seed(4)
    prompt = torch.tensor([1, 6, 3, 2, 5, 4])
    response = torch.tensor([9, 1, 0, 4, 7, 2])
    return torch.randint(1, 99, (ROWS, LONGEST), generator=dice), prompt, response


def check(micro: MicroBatch, rows: list[int]) -> None:
    """Every response token is scored once, from the position before it."""
    tokens, prompt, response = batch()
    b = len(rows)
    seen = {}
    for position, target, slot in zip(micro.position, micro.target, micro.slot, strict=True):
        column, row = divmod(int(position), b)
        seen[int(slot)] = (row, column, int(target))
    expected = {}
    for index, row in enumerate(rows):
        for j in range(int(response[row])):
            at = int(prompt[row]) + j
            expected[row * WIDTH + j] = (index, at - 1, int(tokens[row, at]))
    assert seen == expected
    for index, row in enumerate(rows):
        length = int(prompt[row] + response[row])
        assert torch.equal(micro.tokens[index, :length], tokens[row, :length])


def test_every_response_token_once() -> None:
    for rows in ([0], [2, 1], [5, 0, 3], list(range(ROWS))):
        check(build_micro_batch(*batch(), rows, WIDTH), rows)


def test_width_is_the_longest_row_padded_to_the_multiple() -> None:
    assert build_micro_batch(*batch(), [3, 5], WIDTH).tokens.shape == (2, 6)
    assert build_micro_batch(*batch(), [3, 1], WIDTH, pad_to_multiple=4).tokens.shape == (2, 8)
    wide = build_micro_batch(*batch(), [4], WIDTH, pad_to_multiple=8)
    assert wide.tokens.shape == (1, 16) and int(wide.tokens[0, 15]) == 0


def test_loss_inputs_follow_their_tokens() -> None:
    rows = [4, 1]
    numbers = torch.arange(ROWS * WIDTH, dtype=torch.float32)
    inputs = LossInputs(weights=numbers, advantages=-numbers)
    micro = build_micro_batch(*batch(), rows, WIDTH, inputs)
    assert micro.inputs.weights is not None and micro.inputs.advantages is not None
    assert torch.equal(micro.inputs.weights, micro.slot.float())
    assert torch.equal(micro.inputs.advantages, -micro.slot.float())
    assert micro.inputs.returns is None


def test_no_rows_make_one_padding_row_that_weighs_nothing() -> None:
    numbers = torch.ones(ROWS * WIDTH)
    micro = build_micro_batch(*batch(), [], WIDTH, LossInputs(weights=numbers), pad_to_multiple=2)
    assert micro.tokens.shape == (1, 2)
    assert micro.position.numel() == micro.target.numel() == micro.slot.numel() == 0
    assert micro.inputs.weights is not None and micro.inputs.weights.numel() == 0

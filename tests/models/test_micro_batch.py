"""The micro-batch builder against a token-by-token loop."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from megarl.data.balance import pack
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


def test_packed_rows_hold_every_sample_once_and_apart() -> None:
    """Tokens, targets and slots of the padded micro-batch, in fewer rows."""
    tokens, prompt, response = batch()
    rows = list(range(ROWS))
    numbers = torch.arange(ROWS * WIDTH, dtype=torch.float32)
    inputs = LossInputs(weights=numbers)
    padded = build_micro_batch(tokens, prompt, response, rows, WIDTH, inputs)
    packed = build_micro_batch(tokens, prompt, response, rows, WIDTH, inputs, 4, packing=True)
    assert packed.samples is not None and packed.tokens.shape == packed.samples.shape
    assert packed.tokens.shape[1] % 4 == 0
    assert packed.tokens.numel() < 0.8 * padded.tokens.numel()
    assert torch.equal(packed.slot, padded.slot) and torch.equal(packed.target, padded.target)
    assert torch.equal(packed.inputs.weights, padded.inputs.weights)  # type: ignore[arg-type]
    for index, row in enumerate(rows):
        length = int(prompt[row] + response[row])
        assert torch.equal(packed.tokens[packed.samples == index], tokens[row, :length])
    column, line = packed.position // len(packed.tokens), packed.position % len(packed.tokens)
    assert torch.equal(packed.samples[line, column], packed.slot // WIDTH)
    after = packed.tokens[line, column + 1]
    assert torch.equal(after, packed.target)


def test_attention_stays_inside_a_sample() -> None:
    """Allowed from a token to itself and what stands before it in the same sample."""
    tokens, prompt, response = batch()
    packed = build_micro_batch(tokens, prompt, response, [0, 1, 3, 5], WIDTH, packing=True)
    mask = packed.attention_mask()
    assert mask is not None and packed.samples is not None
    b, s = packed.samples.shape
    for row in range(b):
        for query in range(s):
            for key in range(s):
                same = packed.samples[row, query] == packed.samples[row, key]
                assert bool(mask[row, 0, query, key]) == (bool(same) and key <= query)
    alone = build_micro_batch(tokens, prompt, response, [0], WIDTH, packing=True)
    assert alone.attention_mask() is None


@pytest.mark.parametrize("lengths", [[5], [7, 7, 7], [9, 1, 2, 3, 3], [1] * 40, [64, 3, 9, 30]])
def test_packing_pads_at_most_a_tenth(lengths: list[int]) -> None:
    rows = pack(lengths)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    widest = max(sum(lengths[i] for i in row) for row in rows)
    assert len(rows) * widest <= 1.1 * sum(lengths)


def test_equal_samples_are_not_packed() -> None:
    """Nothing is gained, and attention would cost more."""
    assert pack([6, 6, 6, 6]) == [[0], [1], [2], [3]]

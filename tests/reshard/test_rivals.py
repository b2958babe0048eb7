"""What rivals move, on layouts small enough to count by hand."""

from __future__ import annotations

import pytest
from layout_world import model

from megarl.layout import ReplicaLayout, hf_tensors
from megarl.layout.alias import aliased_elements
from megarl.layout.cost import LinkModel, Totals, cost_of
from megarl.mesh.layout import MeshLayout
from megarl.reshard.placements import actor_placements, rollout_placements
from megarl.reshard.rivals import gather_totals, m2n_elements

SHAPE = model(vocab_size=128)
TOTAL = sum(dims[0] * (dims[1] if len(dims) > 1 else 1) for dims in hf_tensors(SHAPE).values())


def test_a_gather_over_stages_on_two_nodes() -> None:
    """PP2 on two nodes of one rank: each is sent the other's stage; nothing is gathered."""
    layout = MeshLayout(pp=2)
    held = {
        rank: sum(piece.box.numel for piece in placement)
        for rank, placement in actor_placements(SHAPE, layout, (0, 1)).items()
    }
    found = gather_totals(SHAPE, layout, (0, 1), (0, 1), lambda rank: rank)
    assert found == {
        0: Totals(0, 0, held[1], 0, 0),
        1: Totals(0, 0, held[0], 0, 0),
    }
    assert sum(held.values()) == TOTAL


def test_a_gather_inside_a_node() -> None:
    """TP2 on one node: each receives what it lacks of every tensor, from its neighbour."""
    layout = MeshLayout(tp=2)
    held = sum(piece.box.numel for piece in actor_placements(SHAPE, layout, (0, 1))[0])
    found = gather_totals(SHAPE, layout, (0, 1), (0, 1, 2), lambda rank: rank // 2)
    assert found[0] == found[1] == Totals(0, TOTAL - held, 0, 0, 0)
    assert found[2] == Totals(0, 0, TOTAL, 0, 0)


def test_m2n_shards_row_parallel_weights_only() -> None:
    row = 4 * (16 * 32 + 16 * 24)
    assert m2n_elements(SHAPE, 4) == TOTAL - row + row // 4


def test_what_is_in_place_is_whole_buffers() -> None:
    """Same TP, one query group a rank: all but nothing; two groups: qkv is in another order."""
    same = model(vocab_size=128, num_key_value_heads=4)
    layout, replica = MeshLayout(tp=4), ReplicaLayout(4)
    held, needed = (
        actor_placements(same, layout, range(4))[1],
        rollout_placements(same, replica, range(4))[1],
    )
    size = sum(piece.box.numel for piece in needed)
    assert aliased_elements(held, needed) == size
    layout, replica = MeshLayout(tp=2), ReplicaLayout(2)
    held, needed = (
        actor_placements(same, layout, range(2))[1],
        rollout_placements(same, replica, range(2))[1],
    )
    size = sum(piece.box.numel for piece in needed)
    qkv = sum(piece.box.numel for piece in needed if "qkv_proj" in piece.buffer)
    assert aliased_elements(held, needed) == size - qkv


def test_seconds_are_those_of_the_slowest_link() -> None:
    totals = [Totals(10, 20, 30, 5, 60), Totals(0, 40, 10, 0, 0)]
    cost = cost_of(totals, 2, LinkModel(same_gpu=1.0, in_node=2.0, between_nodes=3.0))
    assert (cost.near_max, cost.far_max, cost.sent_max) == (80, 60, 130)
    assert (cost.near_total, cost.far_total) == (120, 80)
    assert cost.seconds == pytest.approx(max(20 / 1, 80 / 2, 120 / 3) / 1e9)

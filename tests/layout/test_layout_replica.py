"""Replicas over ranks: whoever takes which place, every place is taken once."""

from __future__ import annotations

import pytest

from megarl.errors import ConfigError
from megarl.layout import ReplicaLayout


@pytest.mark.parametrize("num_ranks", [1, 2, 4, 8, 12, 24])
@pytest.mark.parametrize(("tp", "pp"), [(1, 1), (2, 1), (1, 2), (2, 2), (4, 2), (3, 2), (2, 3)])
def test_every_assignment_takes_every_place_once(tp: int, pp: int, num_ranks: int) -> None:
    found = list(ReplicaLayout(tp, pp).assignments(num_ranks))
    if num_ranks % (tp * pp):
        assert not found
        return
    assert [found[0].members(0), len(set(found))] == [tuple(range(tp * pp)), len(found)]
    for layout in found:
        members = [layout.members(number) for number in range(num_ranks // layout.size)]
        assert sorted(rank for group in members for rank in group) == list(range(num_ranks))
        assert members == sorted(members), "replicas count by their first rank"
        for number, group in enumerate(members):
            for place, rank in enumerate(group):
                at = layout.slice_of(rank)
                assert (layout.replica_of(rank), layout.place_of(rank)) == (number, place)
                assert (at.pp_rank, at.tp_rank) == divmod(place, tp)
            for stage in range(pp):
                tensor_ranks = group[stage * tp : (stage + 1) * tp]
                assert list(tensor_ranks) == sorted(tensor_ranks), "as torch sorts a group"
            assert all(list(group[t::tp]) == sorted(group[t::tp]) for t in range(tp))


def test_all_that_can_be_had() -> None:
    """Four ranks in replicas of two: neighbours, or every second one."""
    groups = [layout.members(0) for layout in ReplicaLayout(2).assignments(4)]
    assert groups == [(0, 1), (0, 2)]
    # Places are stage x tp + tensor rank: tensor ranks neighbours, or stages.
    places = [layout.members(0) for layout in ReplicaLayout(2, pp=2).assignments(4)]
    assert places == [(0, 1, 2, 3), (0, 2, 1, 3)]


def test_strides_that_overlap_are_refused() -> None:
    with pytest.raises(ConfigError, match="2 tensor ranks 2 apart and 2 stages 2 apart overlap"):
        ReplicaLayout(2, pp=2, tp_stride=2, pp_stride=2)

"""Phases add up on a false clock; each rank logs into its own file."""

from __future__ import annotations

import logging

import pytest

from megarl.errors import ConfigError
from megarl.observe.rank_log import RankLog
from megarl.observe.timing import Phases


def test_phases_nest_and_accumulate_and_start_anew():
    now = [100.0]
    phases = Phases(clock=lambda: now[0])

    def spend(name, seconds):
        with phases(name):
            now[0] += seconds

    spend("generate", 2)
    with phases("update"):
        spend("critic", 1)
        assert phases.current == "update"
        spend("actor", 3)
    spend("generate", 4)
    now[0] += 10
    assert phases.pop() == {
        "timing_s/generate": 6,
        "timing_s/update": 4,
        "timing_s/update/critic": 1,
        "timing_s/update/actor": 3,
        "timing_s/step": 20,
    }
    assert phases.pop() == {"timing_s/step": 0}


def test_a_phase_that_raises_is_timed_and_left():
    phases = Phases()
    with pytest.raises(ZeroDivisionError), phases("score"):
        _ = 1 / 0
    assert phases.current == "" and "timing_s/score" in phases.pop()


def test_each_rank_has_a_file(tmp_path):
    log = logging.getLogger("megarl.train")
    for rank in (0, 3):
        opened = RankLog(tmp_path, rank)
        log.info("step %d", 7)
        log.debug("detail")
        opened.close()
        log.info("after close")
        text = opened.path.read_text()
        assert opened.path == tmp_path / "logs" / f"rank_{rank}.log"
        assert f"rank={rank} INFO megarl.train: step 7" in text and "detail" in text
        assert "after close" not in text


def test_the_logger_is_left_as_it_was(tmp_path):
    root = logging.getLogger("megarl")
    before = root.level, root.propagate, list(root.handlers)
    RankLog(tmp_path, 0).close()
    assert (root.level, root.propagate, list(root.handlers)) == before


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "logs").touch()
    with pytest.raises(ConfigError, match=r"rank_0.log cannot be written"):
        RankLog(tmp_path, 0)

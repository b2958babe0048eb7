"""Metrics reach metrics.jsonl and TensorBoard, and broken ones are seen."""

from __future__ import annotations

import json
import sys

import pytest
import torch

from megarl.errors import ConfigError, DataError
from megarl.observe.logger import Logger
from megarl.observe.metrics_file import read_metrics


def lines_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_jsonl_is_complete_before_close(tmp_path):
    logger = Logger(use_tensorboard=False, log_dir=tmp_path / "new" / "logs")
    logger.log({"reward_mean": 0.85, "kl": torch.tensor(0.5)}, step=100)
    assert lines_of(tmp_path / "new" / "logs") == [{"step": 100, "reward_mean": 0.85, "kl": 0.5}]
    logger.close()
    logger.close()


def test_tensorboard_gets_the_same_numbers(tmp_path):
    event_accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator"
    )
    with Logger(use_tensorboard=True, log_dir=tmp_path, jsonl=False) as logger:
        logger.log({"reward_mean": 0.85}, step=100)
        logger.log({"reward_mean": float("inf")}, step=101)
    events = event_accumulator.EventAccumulator(str(tmp_path))
    events.Reload()
    scalars = [(e.step, e.value) for e in events.Scalars("reward_mean")]
    assert scalars == [(100, pytest.approx(0.85))]
    assert not (tmp_path / "metrics.jsonl").exists()


def test_values_that_are_not_finite_are_null_and_warned_of(tmp_path, caplog):
    with Logger(use_tensorboard=False, log_dir=tmp_path) as logger:
        logger.log({"loss": float("nan"), "kl": float("-inf"), "reward": 1}, step=3)
    assert lines_of(tmp_path) == [{"step": 3, "loss": None, "kl": None, "reward": 1.0}]
    assert "step 3: metrics that are not finite: loss=nan, kl=-inf" in caplog.text


def test_a_killed_run_is_continued_and_read_back(tmp_path):
    with Logger(use_tensorboard=False, log_dir=tmp_path) as logger:
        logger.log({"reward": 1, "kl": float("nan")}, step=1)
        logger.log({"reward": 2}, step=2)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "rew')
    with Logger(use_tensorboard=False, log_dir=tmp_path) as logger:
        logger.log({"reward": 2.5}, step=2)
        logger.log({"accuracy": 0.5}, step=2)
    assert read_metrics(tmp_path / "metrics.jsonl") == {
        1: {"reward": 1.0},
        2: {"reward": 2.5, "accuracy": 0.5},
    }


def test_mistakes_are_named(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="log_dir .*file cannot be written"):
        Logger(use_tensorboard=False, log_dir=tmp_path / "file")
    logger = Logger(use_tensorboard=False, log_dir=tmp_path)
    with logger, pytest.raises(ConfigError, match="cannot be called 'step'"):
        logger.log({"step": 1}, step=1)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ConfigError, match="pip install tensorboard"):
        Logger(log_dir=tmp_path)
    with pytest.raises(DataError, match="hold no steps"):
        read_metrics(tmp_path / "metrics.jsonl")
    with pytest.raises(DataError, match="cannot be read"):
        read_metrics(tmp_path / "none.jsonl")

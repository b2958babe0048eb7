"""The order in which vLLM sleeps and wakes around a sync, on an engine whose LLM only writes down.

Not shown: that memory is given back; vLLM has no sleep mode on a CPU.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from megarl.errors import RunError
from megarl.rollout.vllm_engine import VllmEngine
from megarl.rollout.vllm_sleep import SleepMode
from megarl.types import SamplingSpec


class Recorder:
    """Stands for vllm.LLM, its engine and the live weights."""

    def __init__(self) -> None:
        self.calls: list[Any] = []
        self.unfinished = False
        manager = SimpleNamespace(block_pool=SimpleNamespace(cached_block_hash_to_block={}))
        scheduler = SimpleNamespace(kv_cache_manager=manager)
        self.engine_core = SimpleNamespace(engine_core=SimpleNamespace(scheduler=scheduler))

    def sleep(self, level: int) -> None:
        self.calls.append(("sleep", level))

    def wake_up(self, tags: list[str]) -> None:
        self.calls.append(("wake", *tags))

    def reset_prefix_cache(self) -> bool:
        self.calls.append("reset")
        return True

    def has_unfinished_requests(self) -> bool:
        return self.unfinished

    def open(self) -> dict[str, Any]:
        self.calls.append("open")
        return {}

    def close(self) -> None:
        self.calls.append("close")


def engine_on(recorder: Recorder, enabled: bool) -> VllmEngine:
    engine = VllmEngine.__new__(VllmEngine)
    vars(engine).update(
        _llm=recorder,
        _engine=recorder,
        _weights=recorder,
        _sleep=SleepMode(recorder, enabled),
        _running={},
        _writing=False,
        _dirty=False,
        _is_lead=False,
        weight_version=0,
    )
    return engine


def test_weights_wake_before_the_write_and_the_cache_after_it() -> None:
    recorder = Recorder()
    engine = engine_on(recorder, enabled=True)
    for version in (1, 2):
        recorder.calls.clear()
        engine.sleep()
        engine.begin_load()
        engine.begin_load()  # it may be opened again
        engine.commit(version)
        assert recorder.calls == [
            ("sleep", 2),
            ("wake", "weights"),
            "open",
            "open",
            "close",
            ("wake", "kv_cache"),
            "reset",
        ]


def test_nothing_is_generated_while_it_sleeps() -> None:
    recorder = Recorder()
    engine = engine_on(recorder, enabled=True)
    engine.submit([], SamplingSpec(max_response_length=1))
    engine.sleep()
    engine.sleep()
    assert recorder.calls == [("sleep", 2)]
    with pytest.raises(RunError, match="before the weight sync committed"):
        engine.submit([], SamplingSpec(max_response_length=1))
    engine.begin_load()
    engine.commit(1)
    engine.submit([], SamplingSpec(max_response_length=1))


def test_it_does_not_sleep_under_requests_nor_where_it_was_not_asked_to() -> None:
    recorder = Recorder()
    engine_on(recorder, enabled=False).sleep()
    recorder.unfinished = True
    with pytest.raises(RunError, match="requests"):
        engine_on(recorder, enabled=True).sleep()
    assert recorder.calls == []

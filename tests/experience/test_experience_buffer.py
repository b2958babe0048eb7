"""The buffer between those who make samples and those who learn from them.

Shown against a list in plain Python: orders, epochs, uses, groups, what is dropped and counted. By
doing it: several processes at once, one that is killed while it pushes, disks that fill up.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from megarl.errors import ConfigError, DataError, RunError
from megarl.experience.buffer import ExperienceBuffer
from megarl.experience.sample import Sample, from_buffer, to_bytes

SPAWN = multiprocessing.get_context("spawn")


def make(number: int, group: int | None = None, *, size: int = 5, version: int = 1) -> Sample:
    """A sample whose tensors follow from its number."""
    return Sample(
        sample_id=f"s{number}",
        group=number if group is None else group,
        prompt_ids=torch.arange(3, dtype=torch.int32) + number,
        response_ids=torch.arange(size, dtype=torch.int32) * number,
        logprobs=-torch.rand(size, generator=torch.Generator().manual_seed(number)),
        learned=torch.arange(size) % 2 == 0,
        reward=number / 7,
        text=f"text {number} \n é",
        versions=((version, size),),
        facts={"number": number},
    )


@pytest.fixture
def made() -> Iterator[Any]:
    """Makes buffers, and closes them."""
    buffers: list[ExperienceBuffer] = []

    def make_buffer(*args: Any, **settings: Any) -> ExperienceBuffer:
        buffers.append(ExperienceBuffer(*args, **settings))
        return buffers[-1]

    yield make_buffer
    for buffer in buffers:
        buffer.close()
        assert not buffer.folder.exists()


def names(samples: list[Sample]) -> list[str]:
    return [sample.sample_id for sample in samples]


def test_a_sample_comes_back_as_it_was(made: Any) -> None:
    buffer = made(4)
    given = make(9, size=1000)
    buffer.push([given])
    (found,) = buffer.sample(1)
    for name in ("prompt_ids", "response_ids", "logprobs", "learned"):
        one, other = getattr(given, name), getattr(found, name)
        assert one.dtype == other.dtype and torch.equal(one, other)
    for name in ("sample_id", "group", "reward", "text", "finish_reason", "versions", "facts"):
        assert getattr(given, name) == getattr(found, name)
    found.logprobs.zero_()  # its pages are this process's own


@pytest.mark.parametrize("data", [b"", b"{}\n", b'{"arrays": {"prompt_ids": ["int32", 9]}}\n'])
def test_what_is_no_sample_is_refused(data: bytes) -> None:
    with pytest.raises(DataError, match="holds no sample"):
        from_buffer(bytearray(data), "it")
    with pytest.raises(DataError):
        from_buffer(bytearray(to_bytes(make(3))[:-70]), "it")


def test_age(made: Any) -> None:
    buffer = made(8)
    assert buffer.push([make(i) for i in range(5)]) == 5 and len(buffer) == 5
    assert names(buffer.sample(2)) == ["s0", "s1"] and len(buffer) == 3
    buffer.push([make(5)])
    assert names(buffer.sample(4)) == ["s2", "s3", "s4", "s5"] and len(buffer) == 0


def test_priority(made: Any) -> None:
    buffer = made(8, order="priority")
    buffer.push([make(i) for i in range(4)], priorities=[1, 7, 3, 7])
    assert names(buffer.sample(3)) == ["s1", "s3", "s2"]


def test_uniform_is_by_chance_and_by_the_seed(made: Any) -> None:
    orders = []
    for seed in (0, 0, 1):
        buffer = made(64, order="uniform", seed=seed)
        buffer.push([make(i) for i in range(64)])
        orders.append(names(buffer.sample(32)) + names(buffer.sample(32)))
    assert orders[0] == orders[1] != orders[2] and sorted(orders[0]) == sorted(orders[2])
    first = Counter()
    for seed in range(300):
        buffer = made(4, order="uniform", seed=seed)
        buffer.push([make(i) for i in range(4)])
        first.update(names(buffer.sample(1)))
        buffer.close()
    # 75 each: 4.5 standard deviations of a binomial are 34.
    assert len(first) == 4 and all(abs(count - 75) < 34 for count in first.values())


@pytest.mark.parametrize("order", ["age", "uniform"])
def test_nothing_is_drawn_twice_in_an_epoch(order: str, made: Any) -> None:
    buffer = made(12, order=order, uses=3)
    buffer.push([make(i) for i in range(12)])
    for epoch in range(3):
        seen = [name for _ in range(3) for name in names(buffer.sample(4))]
        assert len(set(seen)) == 12
        assert len(buffer) == (12 if epoch < 2 else 0)


def test_groups_stay_together(made: Any) -> None:
    buffer = made(32, order="uniform", seed=3)
    buffer.push([make(i, i // 4) for i in range(24)])
    for _ in range(3):
        groups = Counter(sample.group for sample in buffer.sample(8))
        assert sorted(groups.values()) == [4, 4]
    buffer.push([make(100 + i, 100) for i in range(3)])
    with pytest.raises(RunError, match="2 samples in whole groups were asked for, and there are 3"):
        buffer.sample(2)


def test_stale_samples_are_dropped_and_counted(made: Any) -> None:
    buffer = made(16)
    buffer.push([make(i, i // 2, version=1 + i // 4) for i in range(12)])
    mixed = make(50, 50)
    buffer.push([Sample(**{**vars_of(mixed), "versions": ((1, 2), (3, 3))})])
    assert names(buffer.sample(4, oldest_version=2)) == ["s4", "s5", "s6", "s7"]
    assert buffer.stats.dropped_stale == 5 and len(buffer) == 4


def vars_of(sample: Sample) -> dict[str, Any]:
    return {name: getattr(sample, name) for name in Sample.__slots__}


def test_when_it_is_full(made: Any) -> None:
    oldest, lowest, new = (
        made(4, when_full=rule) for rule in ("drop_oldest", "drop_lowest", "drop_new")
    )
    for buffer in (oldest, lowest, new):
        buffer.push([make(i) for i in range(4)], priorities=[5, 1, 2, 9])
    assert oldest.push([make(9)]) == 1 and names(oldest.sample(4)) == ["s1", "s2", "s3", "s9"]
    assert lowest.push([make(9)]) == 1 and names(lowest.sample(4)) == ["s0", "s2", "s3", "s9"]
    assert new.push([make(9)]) == 0 and names(new.sample(4)) == ["s0", "s1", "s2", "s3"]
    assert [one.stats.dropped_full for one in (oldest, lowest, new)] == [1, 1, 1]
    blocking = made(4)
    blocking.push([make(i) for i in range(4)])
    with pytest.raises(RunError, match="no room for 1 samples beside 4 of 4"):
        blocking.push([make(9)], timeout_s=0.05)
    thread = threading.Thread(target=lambda: blocking.push([make(9)], timeout_s=20))
    thread.start()
    assert names(blocking.sample(2)) == ["s0", "s1"]
    thread.join()
    assert names(blocking.sample(3)) == ["s2", "s3", "s9"]
    with pytest.raises(RunError, match="a group of 5 samples is larger than the capacity of 4"):
        blocking.push([make(i, 1) for i in range(5)])


def test_memory_and_disk(made: Any, tmp_path: Path) -> None:
    big = [make(i, size=40_000) for i in range(6)]  # 0.4 MB each
    alone = made(16, memory_megabytes=1, when_full="drop_oldest")
    alone.push(big)
    assert names(alone.sample(2)) == ["s4", "s5"] and alone.stats.dropped_full == 4
    with pytest.raises(RunError, match="larger than memory_megabytes 1: raise it, or give spill"):
        alone.push([make(i, 1, size=40_000) for i in range(6)])
    spilling = made(16, memory_megabytes=1, spill=tmp_path / "disk")
    spilling.push(big)
    assert len(list((tmp_path / "disk").rglob("*.sample"))) == 4
    assert names(spilling.sample(6)) == names(big)
    assert not list((tmp_path / "disk").rglob("*.sample"))


def test_a_full_disk_loses_nothing(
    made: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A group is kept whole or not at all; the buffer goes on."""
    buffer = made(16, memory_megabytes=1, spill=tmp_path / "disk")
    buffer.push([make(i, 0, size=40_000) for i in range(2)])
    write, left = Path.write_bytes, [1]

    def full(path: Path, data: bytes) -> int:
        if "disk" in str(path):
            left[0] -= 1
            if left[0] < 0:
                write(path, data[:1000])
                raise OSError(28, "No space left on device")
        return write(path, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(RunError, match="No space left on device"):
        buffer.push([make(10 + i, 1, size=40_000) for i in range(4)])
    monkeypatch.undo()
    assert len(buffer) == 2 and buffer.stats.pushed == 2
    assert not list((tmp_path / "disk").rglob("*.sample"))
    buffer.push([make(20, 2)])
    assert names(buffer.sample(3)) == ["s0", "s1", "s20"]


def test_a_checkpoint_goes_on(made: Any) -> None:
    """What comes after is what would have come."""

    def rest(buffer: ExperienceBuffer) -> list[str]:
        return names(buffer.sample(6)) + names(buffer.sample(6)) + names(buffer.sample(3))

    buffer, again = (made(40, order="uniform", seed=5, uses=2) for _ in range(2))
    again.push([make(99)])
    buffer.push([make(i, i // 3) for i in range(15)])
    buffer.sample(6)
    again.load_state_dict(buffer.state_dict())
    assert again.stats == buffer.stats and len(again) == len(buffer)
    assert rest(again) == rest(buffer)
    with pytest.raises(RunError, match="do not fit into a capacity of 2"):
        filled = made(16)
        filled.push([make(i) for i in range(3)])
        made(2).load_state_dict(filled.state_dict())


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"capacity": 0}, "capacity 0"),
        ({"capacity": 4, "uses": 0}, "uses 0"),
        ({"capacity": 4, "order": "best"}, "'best' is none of age, priority, uniform"),
        ({"capacity": 4, "when_full": "burst"}, "'burst' is none of block, drop_oldest"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, Any], text: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=text):
        ExperienceBuffer(**settings)
    with pytest.raises(ConfigError, match="there is no experience buffer"):
        ExperienceBuffer.attach(tmp_path)


def push_many(folder: str, first: int, count: int) -> None:
    """Another process's part."""
    buffer = ExperienceBuffer.attach(folder)
    for number in range(first, first + count):
        buffer.push([make(2 * number, number), make(2 * number + 1, number)], timeout_s=60)
    buffer.close()


def test_processes_share_it(made: Any) -> None:
    """Three push, two threads draw: each sample comes out once, with its own tensors."""
    buffer = made(20)
    each = 60
    pushing = [
        SPAWN.Process(target=push_many, args=(str(buffer.folder), each * i, each)) for i in range(3)
    ]
    for process in pushing:
        process.start()
    found: list[Sample] = []

    def draw() -> None:
        for _ in range(3 * each // 4):
            found.extend(buffer.sample(4, timeout_s=60))

    threads = [threading.Thread(target=draw) for _ in range(2)]
    for thread in threads:
        thread.start()
    for waiter in (*threads, *pushing):
        waiter.join()
    assert sorted(names(found)) == sorted(f"s{i}" for i in range(6 * each))
    for sample in random.Random(0).sample(found, 40):
        assert torch.equal(sample.response_ids, make(sample.facts["number"]).response_ids)
    assert len(buffer) == 0 and buffer.stats.pushed == 6 * each


def test_one_that_is_killed_leaves_it_whole(made: Any) -> None:
    """Wherever it was: what is there can be drawn, and others push on."""
    buffer = made(5000)
    process = SPAWN.Process(target=push_many, args=(str(buffer.folder), 0, 2000))
    process.start()
    while len(buffer) < 40:
        time.sleep(0.005)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    buffer.push([make(9000, 9000), make(9001, 9000)], timeout_s=5)
    there = len(buffer)
    drawn = buffer.sample(there - there % 2, timeout_s=1)
    assert len(set(names(drawn))) == len(drawn) and "s9001" in names(drawn)


def test_a_buffer_that_nobody_closed_is_taken_away() -> None:
    buffer = ExperienceBuffer(4)
    folder = buffer.folder
    assert folder.exists()
    del buffer
    assert not folder.exists()


def make_and_die(connection: Any) -> None:
    """A buffer that nobody can close."""
    buffer = ExperienceBuffer(4)
    connection.send(str(buffer.folder))
    os.kill(os.getpid(), signal.SIGKILL)


def test_what_a_killed_maker_left_goes_with_the_next_buffer(made: Any) -> None:
    mine, theirs = multiprocessing.Pipe()
    process = SPAWN.Process(target=make_and_die, args=(theirs,))
    process.start()
    folder = Path(mine.recv())
    process.join()
    assert folder.exists()
    kept = made(4)
    assert made(4).folder.exists() and kept.folder.exists() and not folder.exists()

"""`ExperienceBuffer`: finished samples between those who make them and those who learn from them.

The samples of a node's processes lie in its shared memory, as files that every process maps: no
array is pickled or copied on the way. One process makes the buffer, others `attach` to its folder.

Order: `age` (oldest first), `priority` (highest first), or `uniform` (by chance, from the seed). An
epoch is a pass over all samples: none is drawn twice in one. After `uses` epochs a sample leaves.
Samples of a group (one prompt) are drawn together, as estimators compare them.

When it is full: `block` waits for room; `drop_oldest` and `drop_lowest` (priority) make room, whole
groups at a time; `drop_new` leaves out what comes. What was dropped is counted.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

import numpy as np

from megarl.errors import ConfigError, RunError
from megarl.experience.index import FREE, READY, Index
from megarl.experience.sample import Sample, map_file, to_bytes
from megarl.runtime.aside import disk_full

Order = Literal["age", "priority", "uniform"]
WhenFull = Literal["block", "drop_oldest", "drop_lowest", "drop_new"]
SHARED = Path("/dev/shm")
SETTINGS = "settings.json"
PREFIX = "megarl-buffer-"
WAIT_S = 0.01
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True, slots=True)
class Settings:
    """What all processes at a buffer must know alike."""

    order: Order
    when_full: WhenFull
    uses: int
    seed: int
    memory_bytes: int | None
    """Of shared memory; None: as much as there is."""
    spill: str | None
    """Folder on a disk for what does not fit into that."""


@dataclass(frozen=True, slots=True)
class BufferStats:
    """Counts since the buffer was made."""

    pushed: int
    dropped_full: int
    """For want of room."""
    dropped_stale: int
    """Made by weights that were too old when samples were asked for."""


class ExperienceBuffer:
    """Samples of one node; safe for its threads and processes."""

    def __init__(
        self,
        capacity: int,
        *,
        order: Order = "age",
        when_full: WhenFull = "block",
        uses: int = 1,
        seed: int = 0,
        memory_megabytes: int | None = None,
        spill: str | Path | None = None,
    ) -> None:
        """capacity: samples. spill: a folder that is made, and is removed with the buffer.

        ConfigError for settings that cannot be.
        """
        if capacity < 1 or uses < 1:
            raise ConfigError(f"ExperienceBuffer: capacity {capacity}, uses {uses}: give 1 or more")
        for given, known in ((order, get_args(Order)), (when_full, get_args(WhenFull))):
            if given not in known:
                raise ConfigError(f"ExperienceBuffer: {given!r} is none of {', '.join(known)}")
        base = SHARED if SHARED.is_dir() else Path(tempfile.gettempdir())
        _remove_orphans(base)
        folder = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-", dir=base))
        disk = None if spill is None else Path(spill).absolute() / folder.name
        if disk is not None:
            disk.mkdir(parents=True)
        memory = None if memory_megabytes is None else memory_megabytes << 20
        where = None if disk is None else str(disk)
        settings = Settings(order, when_full, uses, seed, memory, where)
        (folder / SETTINGS).write_text(json.dumps(asdict(settings)))
        self._open(folder, settings, Index(folder, capacity))
        self._remove: Any = weakref.finalize(self, _remove, [folder, *([disk] if disk else [])])

    @classmethod
    def attach(cls, folder: str | Path) -> ExperienceBuffer:
        """Another process's buffer, by its `folder`; ConfigError where there is none."""
        self, path = cls.__new__(cls), Path(folder)
        index = Index(path, None)
        self._open(path, Settings(**json.loads((path / SETTINGS).read_text())), index)
        self._remove = None  # it is its maker's
        return self

    def _open(self, folder: Path, settings: Settings, index: Index) -> None:
        self.folder = folder
        """What other processes attach to."""
        self._settings, self._index = settings, index

    @property
    def capacity(self) -> int:
        """Samples at most."""
        return len(self._index.rows)

    @property
    def stats(self) -> BufferStats:
        """What came and went."""
        with self._index.locked():
            head = self._index.head[0]
            names = ("pushed", "dropped_full", "dropped_stale")
            return BufferStats(*(int(head[name]) for name in names))

    def __len__(self) -> int:
        with self._index.locked():
            return len(self._index.ready())

    def push(
        self,
        samples: Sequence[Sample],
        *,
        priorities: Sequence[float] | None = None,
        timeout_s: float | None = None,
    ) -> int:
        """Keep samples, a group's at once; how many were kept (all, but for `drop_new`).

        Raises RunError where nothing of the group is kept: it is larger than the buffer, there was
        no room within timeout_s (None: however long it takes), or disk and memory are full.
        """
        chosen = priorities or [0.0] * len(samples)
        groups: dict[int, list[tuple[Sample, float]]] = {}
        for sample, priority in zip(samples, chosen, strict=True):
            groups.setdefault(sample.group, []).append((sample, float(priority)))
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        return sum(self._push_group(group, deadline) for group in groups.values())

    def sample(
        self, batch_size: int, *, oldest_version: int | None = None, timeout_s: float | None = 0.0
    ) -> list[Sample]:
        """So many samples, in whole groups; none twice in an epoch.

        oldest_version: what older weights made a token of is dropped, and counted. Waits for what
        is missing: RunError after timeout_s (None: however long it takes).
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            with self._index.locked():
                if oldest_version is not None:
                    self._drop_stale(oldest_version)
                rows = self._choose(batch_size)
                if rows is not None:
                    return self._take(rows)
                there = len(self._index.ready())
            if deadline is not None and time.monotonic() >= deadline:
                raise RunError(
                    f"ExperienceBuffer: {batch_size} samples in whole groups were asked for, and "
                    f"there are {there}: push more, or ask for a number that groups add up to"
                )
            time.sleep(WAIT_S)

    def state_dict(self) -> dict[str, Any]:
        """All samples and counts, for a checkpoint: bytes, numbers and text."""
        with self._index.locked():
            rows = self._index.ready()
            kept = [
                {
                    "data": self._path(row).read_bytes(),
                    **{name: self._index.rows[name][row].item() for name in _KEPT},
                }
                for row in rows
            ]
            head = self._index.head[0]
            return {"samples": kept, "head": {name: int(head[name]) for name in _COUNTS}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """What was there before goes; RunError where the samples do not fit."""
        with self._index.locked():
            for row in self._index.ready():
                self._free(row)
            if len(state["samples"]) > self.capacity:
                raise RunError(
                    f"ExperienceBuffer: {len(state['samples'])} samples of a checkpoint do not fit "
                    f"into a capacity of {self.capacity}: raise it"
                )
            for row, kept in enumerate(state["samples"]):
                values = {name: kept[name] for name in _KEPT}
                self._write(row, kept["data"], values)
            for name in _COUNTS:
                self._index.head[name] = state["head"][name]

    def close(self) -> None:
        """Leave it; its maker takes it away, with what processes have not mapped."""
        self._index.close()
        if self._remove is not None:
            self._remove()

    def _push_group(self, group: list[tuple[Sample, float]], deadline: float | None) -> int:
        if len(group) > self.capacity:
            raise RunError(
                f"ExperienceBuffer: a group of {len(group)} samples is larger than the capacity of "
                f"{self.capacity}: raise it"
            )
        data = [to_bytes(sample) for sample, _ in group]
        size, limit = sum(map(len, data)), self._settings.memory_bytes
        if limit is not None and size > limit and self._settings.spill is None:
            raise RunError(
                f"ExperienceBuffer: a group of {size} bytes is larger than memory_megabytes "
                f"{limit >> 20}: raise it, or give spill, a folder on a disk"
            )
        while True:
            with self._index.locked():
                free = self._room_for(data)
                if free is not None:
                    self._enter(group, data, free)
                    return len(group)
                if self._settings.when_full == "drop_new":
                    self._index.count("dropped_full", len(group))
                    return 0
            if deadline is not None and time.monotonic() >= deadline:
                raise RunError(
                    f"ExperienceBuffer: no room for {len(group)} samples beside {len(self)} of "
                    f"{self.capacity}: sample faster, raise the capacity, or let it drop some"
                )
            time.sleep(WAIT_S)

    def _room_for(self, data: Sequence[bytes]) -> list[int] | None:
        """Free rows for a group, room being made where the rule says so; None: wait."""
        rows, settings = self._index.rows, self._settings
        size = sum(map(len, data))
        while True:
            ready = self._index.ready()
            used = int(rows["bytes"][ready[rows["spilled"][ready] == 0]].sum())
            limit = settings.memory_bytes
            fits = limit is None or used + size <= limit or settings.spill is not None
            if len(rows) - len(ready) >= len(data) and fits:
                return np.flatnonzero(rows["state"] == FREE)[: len(data)].tolist()
            if settings.when_full not in ("drop_oldest", "drop_lowest") or not len(ready):
                return None
            worth = "serial" if settings.when_full == "drop_oldest" else "priority"
            first = ready[np.lexsort((rows["serial"][ready], rows[worth][ready]))[0]]
            same = ready[rows["group"][ready] == rows["group"][first]]
            for row in same:
                self._free(row)
            self._index.count("dropped_full", len(same))

    def _enter(
        self, group: list[tuple[Sample, float]], data: Sequence[bytes], free: Sequence[int]
    ) -> None:
        """All of a group, or nothing."""
        serial = self._index.count("serial", len(group))
        entered: list[int] = []
        try:
            for number, ((sample, priority), one, row) in enumerate(
                zip(group, data, free, strict=True)
            ):
                values = {
                    "serial": serial + number,
                    "group": sample.group,
                    "priority": priority,
                    "version": sample.oldest_version,
                    "epoch": 0,
                    "uses": 0,
                }
                self._write(row, one, values)
                entered.append(row)
        except BaseException:
            for row in entered:
                self._free(row)
            raise
        self._index.count("pushed", len(group))

    def _write(self, row: int, data: bytes, values: Mapping[str, Any]) -> None:
        rows = self._index.rows
        for name, value in values.items():
            rows[name][row] = value
        rows["bytes"][row], rows["spilled"][row] = len(data), 0
        used = int(rows["bytes"][self._index.ready()].sum())
        limit = self._settings.memory_bytes
        failure: OSError | None = None
        for spilled in range(1 if self._settings.spill is None else 2):
            if not spilled and limit is not None and used + len(data) > limit:
                continue
            rows["spilled"][row] = spilled
            try:
                self._path(row).write_bytes(data)
            except OSError as error:
                self._path(row).unlink(missing_ok=True)
                if error.errno not in NO_ROOM:
                    raise
                failure = error
            else:
                rows["state"][row] = READY
                return
        assert failure is not None
        raise disk_full(f"ExperienceBuffer in {self._path(row).parent}", failure) from failure

    def _choose(self, wanted: int) -> list[int] | None:
        """Rows of whole groups that this epoch has not seen, or of the next one; None: too few."""
        index = self._index
        ready = index.ready()
        if len(ready) < wanted:
            return None
        while True:
            fresh = ready[index.rows["epoch"][ready] < index.head["epoch"][0]]
            chosen: list[int] = []
            for group in self._in_order(fresh):
                if len(chosen) + len(group) <= wanted:
                    chosen += group
                if len(chosen) == wanted:
                    return chosen
            if len(fresh) == len(ready):
                return None
            index.count("epoch")  # what is left of the old one is too little for a batch

    def _in_order(self, rows: np.ndarray[Any, Any]) -> Iterator[list[int]]:
        """Groups of rows, as they are to be drawn."""
        table, order = self._index.rows, self._settings.order
        groups: dict[int, list[int]] = {}
        for row in rows[np.argsort(table["serial"][rows], kind="stable")]:
            groups.setdefault(int(table["group"][row]), []).append(int(row))
        found = list(groups.values())
        if order == "priority":
            found.sort(key=lambda group: -float(table["priority"][group].max()))
        elif order == "uniform":
            draw = self._index.count("draws")
            dice = np.random.default_rng([self._settings.seed, draw])
            found = [found[place] for place in dice.permutation(len(found))]
        yield from found

    def _take(self, rows: Sequence[int]) -> list[Sample]:
        table, epoch = self._index.rows, int(self._index.head["epoch"][0])
        found = []
        for row in rows:
            found.append(map_file(self._path(row)))
            table["epoch"][row] = epoch
            table["uses"][row] += 1
            if table["uses"][row] >= self._settings.uses:
                self._free(row)
        return found

    def _drop_stale(self, oldest: int) -> None:
        """With its whole group: what is left of one is no group."""
        rows, ready = self._index.rows, self._index.ready()
        old = set(rows["group"][ready[rows["version"][ready] < oldest]].tolist())
        for row in ready:
            if int(rows["group"][row]) in old:
                self._free(row)
                self._index.count("dropped_stale")

    def _free(self, row: int) -> None:
        self._index.rows["state"][row] = FREE
        with suppress(FileNotFoundError):
            self._path(row).unlink()

    def _path(self, row: int) -> Path:
        spilled = bool(self._index.rows["spilled"][row])
        base = Path(cast(str, self._settings.spill)) if spilled else self.folder
        return base / f"{int(self._index.rows['serial'][row])}.sample"


_KEPT = ("serial", "group", "priority", "version", "epoch", "uses")
_COUNTS = ("serial", "epoch", "draws", "pushed", "dropped_full", "dropped_stale")


def _remove_orphans(base: Path) -> None:
    """What makers left that were killed; pids are those of this machine's processes."""
    for folder in base.glob(f"{PREFIX}*-*"):
        pid = folder.name.removeprefix(PREFIX).partition("-")[0]
        if pid.isdecimal() and not Path(f"/proc/{pid}").exists() and Path("/proc/self").exists():
            shutil.rmtree(folder, ignore_errors=True)


def _remove(folders: Sequence[Path]) -> None:
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)

"""Runs of `megarl` whose ranks are forked ready-imported, ended at chosen moments, and compared."""

from __future__ import annotations

import json
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from cluster import Cluster, free_port
from torch import Tensor

SCRIPT = str(Path(__file__).with_name("killed_rank.py"))
TIMES = ("timing_s/", "perf/", "reshard/seconds", "eval/seconds")
"""Metrics that no two runs have in common."""
KILLED = -signal.SIGKILL


@dataclass(frozen=True)
class Moment:
    """When something happens to a rank; see killed_rank.py."""

    at: str
    after_s: float = 0.0
    rank: int = 0
    number: int = signal.SIGKILL
    limit_bytes: int = 0

    def env(self, mark: Path) -> dict[str, str]:
        """For that rank, which leaves the time in the file `mark`."""
        what = {"signal": int(self.number), "limit_bytes": self.limit_bytes}
        return {
            "MOMENT": json.dumps({"at": self.at, "after_s": self.after_s, "mark": str(mark)} | what)
        }


@dataclass
class ForkedRuns:
    """Runs in one folder, one after the other."""

    cluster: Cluster
    folder: Path
    command: str
    given: Path | None = None
    """Settings, where they are not this folder's own."""
    num_ranks: int = 2

    @property
    def config(self) -> Path:
        """The settings."""
        return self.given or self.folder / "config.yaml"

    @property
    def arguments(self) -> list[str]:
        """Of `megarl`, for a run in this folder."""
        return [self.command, str(self.config), f"run.dir={self.run_dir}"]

    @property
    def run_dir(self) -> Path:
        """The run folder."""
        return self.folder / "run"

    def __call__(
        self, *overrides: str, moment: Moment | None = None, timeout_s: float = 240.0
    ) -> list[int]:
        """The ranks' exit statuses."""
        common = {
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()),
            "WORLD_SIZE": str(self.num_ranks), "LOCAL_WORLD_SIZE": str(self.num_ranks),
        }  # fmt: skip
        pids = []
        for rank in range(self.num_ranks):
            env = common | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            env |= moment.env(self.mark) if moment is not None and moment.rank == rank else {}
            script = (SCRIPT, *self.arguments, *overrides)
            pids.append(self.cluster.fork_script(self._log(rank), env, *script))
        return self._wait(pids, timeout_s)

    @property
    def mark(self) -> Path:
        """The time of the last moment."""
        return self.folder / "moment"

    def to_the_end(self, *overrides: str) -> None:
        """Run, with success."""
        assert self(*overrides) == [0] * self.num_ranks, self.output()

    def output(self) -> str:
        """What the ranks of the last run printed."""
        return "\n".join(self._log(rank).read_text()[-3000:] for rank in range(self.num_ranks))

    def log(self, rank: int) -> str:
        """What a rank wrote into its log."""
        return (self.run_dir / f"logs/rank_{rank}.log").read_text()

    def steps(self) -> list[int]:
        """Of the checkpoints."""
        found = (self.run_dir / "checkpoints").glob("iter_???????")
        return sorted(int(path.name.removeprefix("iter_")) for path in found)

    def checkpoint(self, step: int) -> Path:
        """Its folder."""
        return self.run_dir / f"checkpoints/iter_{step:07d}"

    def _log(self, rank: int) -> Path:
        return self.folder / f"printed_{rank}"

    def seconds_until_ended(self) -> float:
        """From the moment until the last rank printed something."""
        last = max(self._log(rank).stat().st_mtime for rank in range(self.num_ranks))
        return last - float(self.mark.read_text())

    def says_who_is_gone(self) -> bool:
        """Whether the last line of those that were left names the rank that was killed."""
        lines = [self._log(rank).read_text().splitlines() for rank in range(self.num_ranks)]
        found = [each[-1] for each in lines if each and "failed at" in each[-1]]
        words = "is gone without a word", "the store is gone"
        return bool(found) and all(any(word in line for word in words) for line in found)

    def _wait(self, pids: list[int], timeout_s: float) -> list[int]:
        deadline = time.monotonic() + timeout_s
        try:
            while (statuses := [self.cluster.status_of(pid) for pid in pids]).count(None):
                assert time.monotonic() < deadline, self.output()
                time.sleep(0.02)
        finally:
            for pid in pids:
                if self.cluster.status_of(pid) is None:
                    os.kill(pid, signal.SIGKILL)
        return [status for status in statuses if status is not None]


def outcome(run_dir: Path, step: int) -> dict[str, Any]:
    """What a repetition must have bit for bit: exported weights, last checkpoint, metrics."""
    from safetensors.torch import load_file

    rows = map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines())
    kept = [
        {name: value for name, value in row.items() if not name.startswith(TIMES)} for row in rows
    ]
    weights = {path.name: load_file(path) for path in sorted(run_dir.glob("model/*.safetensors"))}
    assert weights and kept
    return {
        "model": weights,
        "metrics": kept,
        "checkpoint": contents(run_dir / f"checkpoints/iter_{step:07d}"),
    }


def contents(checkpoint: Path) -> dict[str, Any]:
    """Every tensor of every role (weights, Adam), generators, and where the run stands."""
    state = json.loads((checkpoint / "state.json").read_text())
    del state["files"]  # bytes of containers
    ranks = sorted(checkpoint.glob("rank_*.pt"))
    return {
        "state": state,
        "generators": {path.name: torch.load(path, weights_only=True) for path in ranks},
        "roles": {path.name: role_contents(path) for path in checkpoint.iterdir() if path.is_dir()},
    }


def role_contents(folder: Path) -> dict[str, Any]:
    """A torch_dist folder: its tensors, whole, and what all ranks have in common."""
    from torch.distributed.checkpoint import FileSystemReader, load
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

    stored = FileSystemReader(folder).read_metadata().state_dict_metadata
    tensors: dict[str, Any] = {
        key: torch.empty(found.size, dtype=found.properties.dtype)
        for key, found in stored.items()
        if isinstance(found, TensorStorageMetadata)
    }
    load(tensors, checkpoint_id=str(folder), no_dist=True)
    common = torch.load(folder / "common.pt", weights_only=False)
    return {"tensors": tensors, "common": common, "objects": sorted(stored.keys() - tensors.keys())}


def difference(one: Any, other: Any, where: str = "") -> str | None:
    """The first place where two nests of numbers and tensors differ, bit for bit; None if none."""
    if isinstance(one, dict) and isinstance(other, dict):
        if one.keys() != other.keys():
            return f"{where}: {sorted(map(str, one.keys() ^ other.keys()))[:4]} on one side only"
        each = (difference(value, other[key], f"{where}/{key}") for key, value in one.items())
        return next((found for found in each if found is not None), None)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return difference(dict(enumerate(one)), dict(enumerate(other)), where)
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        same = one.dtype == other.dtype and one.shape == other.shape
        same = same and torch.equal(
            one.view(-1).view(torch.uint8), other.view(-1).view(torch.uint8)
        )
        return None if same else f"{where}: tensors differ"
    return None if type(one) is type(other) and one == other else f"{where}: {one!r}, {other!r}"

"""The executor between tensors on GPUs: kernels, streams and NCCL for real; needs one GPU, or two.

The same jobs as on a CPU (test_executor.py, and test_streams.py for the order of streams), compared
bit for bit with the full tensors.
"""

from __future__ import annotations

from datetime import timedelta
from multiprocessing.pool import Pool
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from jobs_reshard import Facts, Options, reshard
from reshard_worlds import model_world

from megarl import native
from megarl.mesh.group import RankGroup
from megarl.runtime.device import bind_device

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not native.cuda_available(), reason="no GPU, or built without CUDA"),
]
TYPES = [
    ("float32", "float32", "float32"),
    ("float32", "bfloat16", "bfloat16"),
    ("float32", "bfloat16", "float32"),
]


def one_rank(store: str, rank: int, size: int, world: Any, options: Options) -> Facts:
    """A rank of a group by itself, on the GPU of its number."""
    bind_device(rank)
    group = RankGroup(dist.FileStore(store, size), rank, size, timedelta(seconds=60))
    return reshard(SimpleNamespace(universe=group, rank=rank), world, options, 3)  # type: ignore[arg-type]


@pytest.mark.parametrize("types", TYPES)
def test_local_copies(types: tuple[str, str, str], tmp_path: Path) -> None:
    world = model_world(tp=1, pp=1, dp=1, rollout_tp=1, world=1, nodes=(0,), tied=True)
    facts = one_rank(str(tmp_path / "store"), 0, 1, world, Options(1 << 14, True, *types))
    assert facts.wrong == []
    for report in facts.reports:
        assert report.bytes_local > 0 and report.regions_verified > 0
        assert report.bytes_received == report.lower_bound_bytes == 0


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("types", TYPES)
def test_two_gpus(types: tuple[str, str, str], overlap: bool, tmp_path: Path) -> None:
    world = model_world(tp=2, pp=1, dp=1, rollout_tp=1, world=2, nodes=(0, 0), tied=False)
    options = Options(1 << 14, overlap, *types)
    context = torch.multiprocessing.get_context("spawn")
    with Pool(2, context=context) as pool:
        store = str(tmp_path / "store")
        ranks = [(store, rank, 2, world, options) for rank in range(2)]
        found = pool.starmap_async(one_rank, ranks, chunksize=1).get(timeout=300)
    for facts in found:
        assert facts.wrong == []
        for report in facts.reports:
            assert report.bytes_received == report.lower_bound_bytes > 0
            assert report.rounds > 3

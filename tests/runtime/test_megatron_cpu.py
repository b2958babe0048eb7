"""The stand-in for torch.cuda is there for megatron modules and for nobody else."""

from __future__ import annotations

import jobs_runtime
import pytest
import torch
from cluster import Cluster

from megarl.errors import ConfigError
from megarl.runtime import megatron_cpu


@pytest.mark.dist
def test_only_megatron_sees_it(cluster: Cluster) -> None:
    """In a process that has Megatron, vLLM and transformers loaded, and trained with them."""
    assert cluster.run(1, jobs_runtime.who_sees_the_stand_in) == [[]]


def test_it_refuses_where_cuda_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(ConfigError, match="CUDA is available"):
        megatron_cpu.install()


def test_every_stand_in_says_who_needs_it() -> None:
    for name, stand_in, needed_by in megatron_cpu.CUDA_TABLE:
        assert hasattr(torch.cuda, name) and callable(stand_in) and needed_by
    assert all(hasattr(torch, name) for name in megatron_cpu.FACTORIES)

"""On a GPU only those expert kernels are taken that compute with what the loaders wrote."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from megarl.errors import ConfigError
from megarl.rollout import vllm_weights


def model_with(kernel: str) -> torch.nn.Module:
    """An experts layer of vLLM's, as far as is looked at."""
    experts = torch.nn.Module()
    experts.w13_weight = torch.nn.Parameter(torch.zeros(2, 8, 4))
    experts.w2_weight = torch.nn.Parameter(torch.zeros(2, 4, 4))
    experts.quant_method = SimpleNamespace(unquantized_backend=SimpleNamespace(name=kernel))
    model = torch.nn.Module()
    model.experts = experts
    return model


def test_kernels_that_repack_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_weights, "on_cuda", lambda: True)
    live = vllm_weights.LiveWeights(model_with("TRITON")).open()
    assert set(live) == {"experts.w13_weight", "experts.w2_weight"}
    with pytest.raises(
        ConfigError, match="experts for its FLASHINFER_CUTLASS .*moe_backend=triton"
    ):
        vllm_weights.LiveWeights(model_with("FLASHINFER_CUTLASS"))


def test_the_names_are_vllms() -> None:
    from vllm.model_executor.layers.fused_moe.oracle.unquantized import UnquantizedMoeBackend

    assert set(vllm_weights.AS_LOADED) <= UnquantizedMoeBackend.__members__.keys()
